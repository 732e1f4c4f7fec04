/** An engine that computes another model is refused, and a faster one is taken; sampling. */
package dev.edgevlm.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Test

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
