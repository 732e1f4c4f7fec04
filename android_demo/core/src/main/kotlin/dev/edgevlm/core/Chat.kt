/** Chat: questions about the same image; and an answer as a Flow of pieces, whose cancellation ends the computing. */
package dev.edgevlm.core

import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.channels.trySendBlocking
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.channelFlow
import kotlinx.coroutines.flow.flowOn
import kotlinx.coroutines.launch

/** What becomes known of an answer. */
sealed interface Event {
    /** An answer about this picture begins. */
    class Look(val picture: Picture) : Event

    class Text(val piece: String) : Event

    class Done(val answer: Answer) : Event
}

/** A question and its answer, as they are kept when the process is killed. */
class Exchange(val question: String, val answer: String, val ids: IntArray?)

/** [past]: what was said before about the same image, of this process or one before it. */
class Chat(private val session: Session, private val picture: Picture?, past: List<Exchange> = emptyList()) {
    private val kept = ArrayList(past)

    /** Those that were answered to the end. */
    val exchanges: List<Exchange> get() = kept

    /** The answer; a question that fails, or is stopped, is not kept. See [Session.answer]. */
    fun ask(question: String, ask: Ask = Ask(), stop: Stop = Stop(), emit: (String) -> Unit = {}): Answer {
        val times = ImageTimes()
        val rows = picture?.let { listOf(session.encode(it, stop, times)) }.orEmpty()
        val turns = kept.mapIndexed { number, said ->
            Turn(said.question, if (number == 0) rows else emptyList(), said.answer, said.ids)
        } + Turn(question, if (kept.isEmpty()) rows else emptyList())
        val answer = session.answer(turns, ask, stop, times, emit)
        // As the model wrote it, so that the cache holds it; but not with the stop string that ended it.
        val whole = session.tokenizer.decode(answer.ids.asList()) == answer.text
        kept += Exchange(question, answer.text, answer.ids.takeIf { whole })
        return answer
    }

    /** Computes on [engine], a dispatcher of one thread. Who stops collecting ends the computing within a token. */
    fun stream(question: String, engine: CoroutineDispatcher, ask: Ask = Ask()): Flow<Event> = channelFlow {
        val stop = Stop()
        val watch = launch(Dispatchers.Default, CoroutineStart.UNDISPATCHED) {
            try {
                awaitCancellation()
            } finally {
                stop.now()
            }
        }
        try {
            send(Event.Done(ask(question, ask, stop) { trySendBlocking(Event.Text(it)) }))
        } catch (stopped: StoppedException) {
            throw CancellationException("nobody collects the answer", stopped)
        }
        watch.cancel()
    }.flowOn(engine)
}
