/** Live: one question about what a camera sees now, again and again. The newest frame is taken, the others are not. */
package dev.edgevlm.core

import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.emitAll
import kotlinx.coroutines.flow.flow
import java.util.concurrent.atomic.AtomicInteger

private const val GLANCE = 24 // tokens: by then the camera looks elsewhere

/** A place for one frame, where a newer one replaces what nobody took. For any thread. */
class Frames {
    private val passed = AtomicInteger()
    internal val channel = Channel<Frame>(Channel.CONFLATED) { passed.incrementAndGet() }

    /** Those that were replaced before anyone took them. */
    val dropped: Int get() = passed.get()

    fun put(frame: Frame) {
        channel.trySend(frame)
    }

    /** Whoever watches has seen the last one. */
    fun end() {
        channel.close()
    }
}

/** Answers about the newest frame, each for itself, until the frames end or nobody collects. See [Chat.stream]. */
fun watch(session: Session, frames: Frames, question: String, engine: CoroutineDispatcher): Flow<Event> = flow {
    for (frame in frames.channel) {
        val picture = frame.picture()
        emit(Event.Look(picture))
        emitAll(Chat(session, picture).stream(question, engine, Ask(maxTokens = GLANCE)))
    }
}

/** What a screen says where the camera may not be used. [forGood]: the system asks no more. */
fun refusedCamera(forGood: Boolean): EdgeException {
    val hint = if (forGood) "allow it in the system's settings" else "allow it when the phone asks again"
    return UsageException("the camera may not be used", hint)
}
