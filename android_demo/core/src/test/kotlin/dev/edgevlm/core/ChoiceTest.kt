/** An engine that computes another model is refused, and a faster one is taken; sampling. */
package dev.edgevlm.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File

class ChoiceTest {
    private val bundle = Bundle.open(place("bundle"))
    private var time = 0L

    private fun engine(name: String, step: Long, error: Float = 0f) = FakeEngine(name) {
        val model = GoldenModel(it, error)
        object : Model by model {
            override fun see(pixels: FloatArray, stop: Stop) = model.see(pixels, stop).also { time += step }
        }
    }

    private fun chosen(vararg engines: Engine) =
        choose(engines.toList(), { Session.open(bundle, it, Settings(1)) }, clock = { time })

    @Test
    fun theFasterOfThoseThatComputeTheModelIsTaken() {
        assertEquals("fast", chosen(engine("cpu", 100), engine("fast", 50)).engine.name)
        assertEquals("cpu", chosen(engine("cpu", 100), engine("slow", 200)).engine.name)
        assertEquals("cpu", chosen(engine("cpu", 100), engine("same", 100)).engine.name)
    }

    @Test
    fun oneThatComputesAnotherModelIsLeftHoweverFast() {
        val choice = chosen(engine("cpu", 100), engine("wrong", 1, error = 0.5f), engine("nan", 1, error = Float.NaN))
        assertEquals("cpu", choice.engine.name)
        assertEquals(listOf(true, false, false), choice.trials.map { it.report!!.ok })
        assertSays(Exception(choice.trials[1].failure), "ANOTHER model", "vision")
        assertFalse(choice.trials[2].report!!.rows.all { it.finite })
    }

    @Test
    fun oneWhoseKernelsRoundIsHeldToWhatIsRounded() {
        val golden = Golden.load(bundle.file(bundle.manifest.golden))
        assertFalse(golden.rounded!!.logits.contentEquals(golden.stored.logits))
        for (outputs in listOf(golden.stored, golden.rounded)) {
            val engine = FakeEngine { GoldenModel(it, 0f, outputs) }
            val report = Session.open(bundle, engine, Settings(1)).use { verify(it) }
            assertTrue(report.table(), report.ok)
            for (stage in listOf("vision", "prefill")) assertEquals(0.0, report.error(stage, "stored")["max_abs"])
            assertEquals(1.0, report.error("tokens", "stored")["tokens"])
        }
    }

    @Test
    fun theProofIsATableOfItsStages() {
        val report = Session.open(bundle, engine("cpu", 1, error = 0.5f), Settings(1)).use { verify(it) }
        val lines = report.table().lines()
        assertEquals(8, lines.size)
        assertTrue(lines[0], lines[0].startsWith("✓ picture, golden: cosine 1.00000, max_abs "))
        assertTrue(lines[2], lines[2].startsWith("✗ vision, stored: cosine 0.") && "max_abs 0.5" in lines[2])
    }

    @Test
    fun oneThatDoesNotOpenIsLeftAndTheFirstMustNotFail() {
        val broken = FakeEngine("broken") { throw EngineException("no such hardware") }
        assertEquals("no such hardware", chosen(engine("cpu", 1), broken).trials[1].failure)
        assertSays(thrown<EngineException> { chosen(broken) }, "no such hardware")
        assertSays(thrown<EngineException> { chosen(engine("cpu", 1, error = 0.5f)) }, "ANOTHER model")
    }

    @Test
    fun theWheelsLibraryTellsItsProviders() {
        assertTrue(Provider.CPU in OnnxEngine.available())
        assertEquals("onnxruntime+xnnpack", OnnxEngine(Provider.XNNPACK).name)
    }

    @Test
    fun aSeedGivesPythonsPicks() {
        val sampled = vectors(File(place("golden"), "sampled.json"))["sampled"].items()
        assertEquals(6, sampled.size)
        for (entry in sampled) {
            fun number(name: String) = (entry[name] as Number?)?.toDouble() ?: 1.0
            val seed = entry["seed"] as Long
            val topK = (entry["top_k"] as Long?)?.toInt() ?: 0
            val asked = Sampling(number("temperature"), topK, number("top_p"), number("repeat_penalty"), seed)
            var x = seed.toInt()
            val logits = FloatArray(300) {
                x = x * 1664525 + 1013904223
                ((x.toLong() and 0xFFFFFFFFL) / 268435456.0 - 8).toFloat()
            }
            val (sampler, picks) = Sampler(asked) to ArrayList<Int>()
            repeat(40) { picks += sampler.pick(logits, picks) }
            assertEquals("$entry", entry["picks"].numbers(), picks)
        }
        assertSays(thrown<UsageException> { Sampling(seed = -1) }, "seed is -1")
    }

    @Test
    fun aSeedRepeatsItsPicksAndTheRulesHold() {
        val logits = FloatArray(50) { (it * 37 % 11).toFloat() }
        fun picks(sampling: Sampling) = Sampler(sampling).let { s -> List(40) { s.pick(logits, emptyList()) } }
        assertEquals(setOf(8), picks(Sampling()).toSet()) // the first of the largest: 8 · 37 mod 11 is 10
        val warm = Sampling(temperature = 1.5, seed = 3)
        assertEquals(picks(warm), picks(warm))
        assertTrue(picks(warm).toSet().size > 3)
        assertEquals(setOf(8, 19), picks(Sampling(temperature = 9.0, topK = 2, seed = 1)).toSet())
        assertEquals(setOf(8), picks(Sampling(temperature = 9.0, topP = 1e-6, seed = 1)).toSet())
        val said = floatArrayOf(1f, 9f, 2f, 0f, 0f, 0f, 0f, 5f)
        assertEquals(7, Sampler(Sampling(repeatPenalty = 2.0)).pick(said, listOf(1, 1)))
        val broken = floatArrayOf(0f, Float.NaN)
        assertSays(thrown<EngineException> { Sampler(Sampling()).pick(broken, emptyList()) }, "NaN", "token 1")
        assertSays(thrown<UsageException> { Sampling(topP = 0.0) }, "topP is 0.0")
    }
}
