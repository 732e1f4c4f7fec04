/** A camera's frames: their colours, which way they stand, and that the newest is the one that is asked about. */
package dev.edgevlm.core

import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.onEach
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import org.junit.AfterClass
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import java.util.concurrent.Executors

class LiveTest {
    /** Grey, brighter from frame to frame. */
    private fun grey(bright: Int) = Frame(8, 6, plane(8, 6, bright), plane(4, 3, 128), plane(4, 3, 128), 0)

    private fun plane(width: Int, height: Int, value: Int) =
        Plane(ByteArray(width * height) { value.toByte() }, width, 1)

    private fun colour(y: Int, u: Int, v: Int): List<Int> =
        Frame(2, 2, plane(2, 2, y), plane(1, 1, u), plane(1, 1, v), 0).picture().rgb.take(3).map { it.toInt() and 255 }

    @Test
    fun coloursAreThoseOfJfif() {
        assertEquals(listOf(0, 0, 0), colour(0, 128, 128))
        assertEquals(listOf(255, 255, 255), colour(255, 128, 128))
        assertEquals(listOf(254, 0, 0), colour(76, 85, 255)) // JFIF's red, rounded to bytes
        assertEquals(listOf(0, 255, 1), colour(150, 44, 21))
        assertEquals(listOf(0, 0, 254), colour(29, 255, 107))
    }

    @Test
    fun aFrameStandsUprightHoweverItsLinesLie() {
        // 3 × 2 pixels of 10 … 60, in lines of 8 bytes, two bytes from one to the next; the last line ends early.
        val bytes = ByteArray(13)
        for (place in 0 until 6) bytes[place / 3 * 8 + place % 3 * 2] = (10 * (place + 1)).toByte()
        val none = Plane(ByteArray(2) { 128.toByte() }, 2, 1)
        fun seen(turns: Int) = Frame(3, 2, Plane(bytes, 8, 2), none, none, turns).picture().let { picture ->
            picture.width to picture.rgb.filterIndexed { at, _ -> at % 3 == 0 }.map { it.toInt() }
        }
        assertEquals(3 to listOf(10, 20, 30, 40, 50, 60), seen(0))
        assertEquals(2 to listOf(40, 10, 50, 20, 60, 30), seen(1))
        assertEquals(3 to listOf(60, 50, 40, 30, 20, 10), seen(2))
        assertEquals(2 to listOf(30, 60, 20, 50, 10, 40), seen(3))
        assertSays(thrown<ImageException> { Frame(3, 3, Plane(bytes, 8, 2), none, none, 0) }, "3 × 3")
        assertSays(thrown<ImageException> { Frame(0, 0, none, none, none, 0) }, "0 × 0")
    }

    @Test
    fun theNewestFrameIsAskedAboutAndTheOthersAreNot() = runBlocking {
        Executors.newSingleThreadExecutor().asCoroutineDispatcher().use { engine ->
            val frames = Frames()
            listOf(10, 20, 30).map(::grey).forEach(frames::put)
            val events = watch(session, frames, "What is this?", engine).onEach { event ->
                if (event is Event.Look && event.picture.rgb[0].toInt() == 30) {
                    listOf(40, 50).map(::grey).forEach(frames::put) // while it computes
                    frames.end()
                }
            }.toList()
            val seen = events.filterIsInstance<Event.Look>().map { it.picture.rgb[0].toInt() }
            assertEquals(listOf(30, 50), seen)
            assertEquals(3, frames.dropped)
            val answers = events.filterIsInstance<Event.Done>().map { it.answer }
            assertEquals(2, answers.size)
            assertTrue(answers.all { it.ids.size in 1..24 })
        }
    }

    @Test
    fun whoStopsWatchingEndsTheComputing() = runBlocking {
        Executors.newSingleThreadExecutor().asCoroutineDispatcher().use { engine ->
            val frames = Frames().apply { put(grey(90)) }
            val events = watch(session, frames, "Describe it.", engine).take(2).toList()
            assertTrue(events[1] is Event.Text)
            frames.put(grey(91))
            val next = watch(session, frames, "Hi", engine).first() as Event.Look
            assertEquals(91, next.picture.rgb[0].toInt())
        }
    }

    @Test
    fun aCameraThatMayNotBeUsedIsASentence() {
        assertSays(refusedCamera(false), "the camera may not be used")
        assertTrue("Try: allow it when the phone asks again." in refusedCamera(false).sentence)
        assertTrue("the system's settings" in refusedCamera(true).sentence)
    }

    companion object {
        val session by lazy { Session.open(Bundle.open(place("bundle")), OnnxEngine(), Settings(2)) }

        @AfterClass
        @JvmStatic
        fun close() = session.close()
    }
}
