/** The APK's own libraries on an emulated ARM processor: Python's numbers there, but for another version's kernels. */
package dev.edgevlm.core

import org.junit.AfterClass
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File

// ONNX Runtime 1.26 of the APK and the newer one of Python's package sum in other orders, and activations that kernels
// round to 8 bits fall to either side: by as much as Python itself differs from one of these processors to the other.
private const val ROWS = 0.05
private const val LOGITS = 0.2

class PhoneLibraryTest {
    private val here = vectors(File(place("here"), "here.json"))

    @Test
    fun itIsTheLibraryOfTheApk() {
        assertEquals(System.getProperty("edge.version"), OnnxEngine.version())
        assertEquals("aarch64", System.getProperty("os.arch"))
        assertTrue(OnnxEngine.available().containsAll(listOf(Provider.CPU, Provider.XNNPACK, Provider.NNAPI)))
    }

    @Test
    fun theProofHolds() {
        val report = verify(session)
        println("\n${report.table()}")
        assertTrue(report.table(), report.ok)
    }

    @Test
    fun theGoldenPictureAndForcedStepsAreNearPythons() {
        val golden = Golden.load(session.bundle.file(session.bundle.manifest.golden))
        val rows = session.encode(golden.pixelValues)
        near("vision", rows.values, floats(File(place("here"), "image_embeds.f32")), ROWS)
        session.forget()
        session.model.rewind(0)
        val cut = session.bundle.manifest.goldenSegments
        val prompt = cut.map { if (it == null) rows else Segment.Tokens(it.toIntArray()) }
        var logits = session.model.extend(prompt, Stop())
        val expected = floats(File(place("here"), "logits.f32"))
        var found = FloatArray(0)
        here["forced"].numbers().forEachIndexed { step, token ->
            val own = expected.copyOfRange(step * logits.size, (step + 1) * logits.size)
            assertEquals("step $step", argmax(own), argmax(logits))
            found += logits
            logits = session.model.extend(listOf(Segment.Tokens(intArrayOf(token))), Stop())
        }
        near("decoder", found + logits, expected, LOGITS)
    }

    @Test
    fun questionsHavePythonsAnswers() {
        val asked = here["answers"].items().take(3)
        val chat = Chat(session, shown(asked[0]))
        for (entry in asked) {
            val answer = Chat(session, shown(entry)).ask(entry["question"] as String)
            assertEquals(entry["ids"].numbers(), answer.ids.toList())
            assertEquals(entry["text"], answer.text)
        }
        assertEquals(asked[0]["later"], chat.ask(asked[0]["question"] as String).text)
    }

    /** As a part's own tolerance has it, which bounds the cosine to the reference. */
    private fun near(role: String, found: FloatArray, expected: FloatArray, most: Double) {
        val error = distance(found, expected)
        println("$role: ${error["max_abs"]} at most from Python's, cosine ${error["cosine"]}")
        val least = session.bundle.manifest.part(role).tolerance.getValue("cosine")
        assertTrue("$role: $error", error.getValue("max_abs") <= most && error.getValue("cosine") >= least)
    }

    companion object {
        private val session by lazy { Session.open(Bundle.open(place("bundle")), OnnxEngine(), Settings(1)) }

        @AfterClass
        @JvmStatic
        fun close() = session.close()
    }
}
