/** The demo bundle on ONNX Runtime: the bits of Python on the same library, and what a session remembers. */
package dev.edgevlm.core

import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.junit.AfterClass
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertSame
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File
import java.util.concurrent.Executors
import kotlin.concurrent.thread

class SessionTest {
    private val here = vectors(File(place("here"), "here.json"))
    private val answers = here["answers"].items()

    @Test
    fun theGoldenPictureAndForcedStepsHavePythonsBits() {
        val manifest = session.bundle.manifest
        val golden = Golden.load(session.bundle.file(manifest.golden))
        val rows = session.encode(golden.pixelValues)
        assertArrayEquals(floats(File(place("here"), "image_embeds.f32")), rows.values, 0f)
        session.forget()
        session.model.rewind(0)
        val prompt = manifest.goldenSegments.map { if (it == null) rows else Segment.Tokens(it.toIntArray()) }
        var logits = session.model.extend(prompt, Stop())
        val expected = floats(File(place("here"), "logits.f32"))
        val forced = here["forced"].numbers()
        for (step in 0..forced.size) {
            val own = expected.copyOfRange(step * logits.size, (step + 1) * logits.size)
            assertArrayEquals("step $step", own, logits, 0f)
            if (step == forced.size) break
            logits = session.model.extend(listOf(Segment.Tokens(intArrayOf(forced[step]))), Stop())
        }
    }

    @Test
    fun theBundlesTokenizerHasPythonsIds() {
        val ids = here["ids"] as List<*>
        (here["texts"] as List<*>).forEachIndexed { place, text ->
            assertEquals("$text", ids[place].numbers(), session.tokenizer.encode(text as String).toList())
        }
    }

    @Test
    fun questionsAndFollowUpsHavePythonsAnswers() {
        assertEquals(9, answers.size)
        for ((_, asked) in answers.groupBy { it["picture"] }) {
            val chat = Chat(session, shown(asked[0]))
            for (entry in asked) {
                val pieces = StringBuilder()
                val answer = Chat(session, shown(entry)).ask(entry["question"] as String) { pieces.append(it) }
                assertEquals(entry["ids"].numbers(), answer.ids.toList())
                assertEquals(entry["text"], answer.text)
                assertEquals(entry["text"], pieces.toString())
                assertEquals(entry["stop"], answer.stopReason)
                assertEquals(entry["later"], chat.ask(entry["question"] as String).text)
            }
        }
    }

    @Test
    fun theProofHoldsForThisAndForSchemaOne() {
        val report = verify(session)
        assertTrue(report.sentence(), report.ok)
        assertEquals(8, report.rows.size)
        assertTrue("the same model: cosine 0.99" in report.sentence())
        assertTrue(Json.write(report.toMap()).startsWith("{\"ok\": true, "))
        Session.open(Bundle.open(File(place("here"), "schema1")), OnnxEngine(), Settings(1)).use { old ->
            assertEquals(1, old.bundle.manifest.schema)
            verify(old).let { assertTrue(it.sentence(), it.ok) }
        }
    }

    @Test
    fun whatWasComputedIsNotComputedAgain() {
        val picture = shown(answers[0])
        val chat = Chat(session, picture)
        session.forget()
        val first = chat.ask("What colour is the star?")
        val second = chat.ask("How many stars are there?")
        assertEquals(0, first.cachedTokens)
        val least = first.promptTokens + first.ids.size
        assertTrue("${second.cachedTokens} of ${second.promptTokens}", second.cachedTokens >= least)
        assertSame(session.encode(picture).views[0], session.encode(picture).views[0])
        val restored = Chat(session, picture, chat.exchanges.take(1)) // of a process that was killed
        assertEquals(second.text, restored.ask("How many stars are there?").text)
        session.trim()
        assertEquals(second.text, Chat(session, picture, chat.exchanges.take(1)).ask("How many stars are there?").text)
    }

    @Test
    fun anAnswerThatIsStoppedEndsAndTheSessionGoesOn() {
        val expected = answers[0]
        val chat = Chat(session, shown(expected))
        val stop = Stop()
        thrown<StoppedException> { chat.ask("Describe the picture.", Ask(), stop) { stop.now() } }
        assertEquals(0, chat.exchanges.size)
        thrown<StoppedException> { chat.ask("Describe the picture.", Ask(), stop) }
        assertEquals(expected["text"], chat.ask(expected["question"] as String).text)
    }

    @Test
    fun theEndIsHeardWithinARunOfTheLibrary() {
        val expected = answers[0]
        session.forget()
        val long = Segment.Tokens(IntArray(session.model.context - 1) { 5 })
        session.model.rewind(0)
        val stop = Stop()
        val asker = thread { Thread.sleep(2); stop.now() }
        thrown<StoppedException> { while (true) { session.model.rewind(0); session.model.extend(listOf(long), stop) } }
        asker.join()
        assertEquals(expected["text"], Chat(session, shown(expected)).ask(expected["question"] as String).text)
    }

    @Test
    fun anAnswerIsAFlowThatCanBeCancelled() = runBlocking {
        Executors.newSingleThreadExecutor().asCoroutineDispatcher().use { engine ->
            val expected = answers[0]
            val chat = Chat(session, shown(expected))
            val events = chat.stream(expected["question"] as String, engine).toList()
            assertEquals(expected["text"], events.filterIsInstance<Event.Text>().joinToString("") { it.piece })
            assertEquals(expected["text"], (events.last() as Event.Done).answer.text)
            assertTrue(chat.stream("Describe the picture.", engine).first() is Event.Text)
            val job = launch { chat.stream("Describe the picture again.", engine).collect { } }
            job.cancelAndJoin()
            assertEquals(1, chat.exchanges.size)
            assertEquals(expected["text"], Chat(session, shown(expected)).ask(expected["question"] as String).text)
        }
    }

    @Test
    fun whatDoesNotFitIsASentence() {
        val chat = Chat(session, null)
        assertSays(thrown<ContextException> { chat.ask("the star ".repeat(2000)) }, "${session.model.context}")
        assertSays(thrown<UsageException> { chat.ask(" \n ") }, "empty")
        val outside = listOf(Segment.Tokens(intArrayOf(99_999)))
        assertSays(thrown<EngineException> { session.model.extend(outside, Stop()) }, "99999")
        Session.open(session.bundle, OnnxEngine(), Settings(1, context = 200)).use { small ->
            assertEquals(200, small.model.context)
            val endless = Ask(sampling = Sampling(repeatPenalty = 1e-9))
            assertEquals("context", Chat(small, shown(answers[0])).ask("Hi", endless).stopReason)
        }
    }

    @Test
    fun openingAgainAndAgainKeepsNoMemory() {
        fun once() = Session.open(session.bundle, OnnxEngine(), Settings(1)).use {
            Chat(it, shown(answers[0])).ask("Hi", Ask(maxTokens = 2))
        }
        fun outside(): Long { // of the heap, which here has one size, in MB
            System.gc() // what lies outside is freed by a thread of the system's own
            Thread.sleep(300)
            return (Memory.now()!! - Runtime.getRuntime().totalMemory()) shr 20
        }
        // What the allocator of the C library holds comes and goes by 200 MB; what leaks never goes.
        fun least() = (1..6).minOf {
            once()
            outside()
        }
        repeat(15) { once() }
        val before = least()
        repeat(30) { once() }
        val grown = least() - before
        assertTrue("$grown MB more after thirty times", grown < 100) // the weights alone would be 140
    }

    @Test
    fun theBenchmarkWritesRowsThatEdgeBenchReads() {
        val bench = Bench(session, "onnxruntime", Settings(2), "a phone", "0", 2, temperature = { 31.5 })
        val rows = bench.rows()
        val tests = rows.map { it["test"] }
        val expected = listOf("peak memory", "preprocess", "vision encode", "pp190", "tg64", "first token")
        assertEquals(expected, tests)
        File(place("out"), "bench.json").writeText(bench.json(rows))
    }

    companion object {
        val session by lazy { Session.open(Bundle.open(place("bundle")), OnnxEngine(), Settings(2)) }

        @AfterClass
        @JvmStatic
        fun close() = session.close()
    }
}
