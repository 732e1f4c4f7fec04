/** Session: an opened bundle that answers questions about images, and remembers what it has computed. */
package dev.edgevlm.core

import java.util.concurrent.TimeUnit

private const val REMEMBERED = 32 // views whose embeddings are kept
const val MOST_TOKENS = 256

/** In milliseconds. [prefillMs]: what of the prompt was not cached; [firstTokenMs]: from the call on. */
class Timings(
    val imageMs: Double,
    val visionMs: Double,
    val prefillMs: Double,
    val firstTokenMs: Double,
    val decodeMs: Double,
    val tokensPerSecond: Double,
)

/** Why an answer ended: `stop`, `length` or `context`. */
class Answer(
    val text: String,
    val ids: IntArray,
    val stopReason: String,
    val promptTokens: Int,
    val cachedTokens: Int,
    val timings: Timings,
)

/** [started]: when the call came, by `System.nanoTime`. */
class Ask(
    val maxTokens: Int = MOST_TOKENS,
    val sampling: Sampling = Sampling(),
    val started: Long = System.nanoTime(),
)

/** What the images of a question took, in nanoseconds; nothing for images that were seen before. */
class ImageTimes {
    var pixels = 0L
    var vision = 0L
}

/** One thread at a time. After an exception, or an answer that was stopped, it goes on. */
class Session private constructor(val bundle: Bundle, val model: Model, val tokenizer: Tokenizer) : AutoCloseable {
    private val prompt = bundle.manifest.prompt
    private val remembered = maxOf(REMEMBERED, bundle.manifest.mostViews) // a follow-up question asks for all of them
    private val held = ArrayList<Any>() // what the decoder holds: a token id, or an image's key and row
    private val images = object : LinkedHashMap<String, Segment.Rows>(16, 0.75f, true) {
        override fun removeEldestEntry(eldest: Map.Entry<String, Segment.Rows>) = size > remembered
    }

    /** An image's views, as the bundle divides it. Throws ImageException. */
    fun views(picture: Picture): Views = views(picture, bundle.manifest.image, bundle.manifest.mostViews)

    /** What the decoder sees of an image. Throws ImageException, EngineException, StoppedException. */
    fun encode(picture: Picture, stop: Stop = Stop(), times: ImageTimes = ImageTimes()): Seen {
        val before = System.nanoTime()
        val views = views(picture)
        times.pixels += System.nanoTime() - before
        return Seen(views.pixels.map { encode(it, stop, times) }, views.rows, views.columns)
    }

    /** Of one view, from pixels `[1, 3, size, size]`. */
    fun encode(pixels: FloatArray, stop: Stop = Stop(), times: ImageTimes = ImageTimes()): Segment.Rows {
        val before = System.nanoTime()
        val key = digest(pixels)
        val rows = images[key] ?: Segment.Rows(model.see(pixels, stop), key, prompt.imageTokens)
        images[key] = rows
        times.vision += System.nanoTime() - before
        return rows
    }

    /**
     * The answer to the last of [turns]; [emit] is given its pieces as they are made. [times]: what its images took.
     * Throws ContextException before anything is computed, EngineException, StoppedException.
     */
    fun answer(
        turns: List<Turn>,
        ask: Ask = Ask(),
        stop: Stop = Stop(),
        times: ImageTimes = ImageTimes(),
        emit: (String) -> Unit,
    ): Answer {
        if (turns.lastOrNull()?.question.isNullOrBlank()) throw UsageException("the question is empty", "ask something")
        if (ask.maxTokens < 1) throw UsageException("maxTokens is ${ask.maxTokens}")
        return Run(segments(prompt, tokenizer, turns), ask, stop, times, emit).answer()
    }

    /** The prompt's logits, after what of it is held already; and how much that was. */
    private fun prefill(segments: List<Segment>, stop: Stop): Pair<FloatArray, Int> {
        val wanted = segments.flatMap { segment ->
            when (segment) {
                is Segment.Tokens -> segment.ids.asList()
                is Segment.Rows -> List(segment.count) { segment.key to it }
            }
        }
        if (wanted.size > model.context) throw ContextException(wanted.size, model.context)
        val alike = held.indices.takeWhile { it < wanted.size && held[it] == wanted[it] }.size
        // The last position is computed anew in any case: its logits are what is asked for.
        val same = minOf(alike, wanted.size - 1, model.position)
        held.subList(same, held.size).clear()
        model.rewind(same)
        val logits = model.extend(after(segments, same), stop)
        held.addAll(wanted.subList(same, wanted.size))
        return logits to same
    }

    private fun append(id: Int, stop: Stop): FloatArray {
        val logits = model.extend(listOf(Segment.Tokens(intArrayOf(id))), stop)
        held += id
        return logits
    }

    /** Nothing of before is used again: the next answer is computed whole. */
    fun forget() {
        images.clear()
        held.clear()
    }

    /** Lets go what can be computed again; the encoder opens anew with the next image. */
    fun trim() {
        model.freeVision()
        images.clear()
    }

    override fun close() = model.close()

    private inner class Run(
        private val segments: List<Segment>,
        private val ask: Ask,
        private val stop: Stop,
        private val times: ImageTimes,
        private val emit: (String) -> Unit,
    ) {
        private val text = StringBuilder()
        private val ids = ArrayList<Int>()
        private var reason = "stop"
        private var steps = 0
        private var spent = 0L

        fun answer(): Answer {
            val begun = System.nanoTime()
            val (logits, cached) = prefill(segments, stop)
            val prefilled = System.nanoTime()
            val history = ArrayList(segments.filterIsInstance<Segment.Tokens>().flatMap { it.ids.asList() })
            val sampler = Sampler(ask.sampling)
            var id = sampler.pick(logits, history)
            val first = System.nanoTime()
            val stream = tokenizer.stream()
            val filter = StopFilter(prompt.stopStrings)
            while (id !in prompt.stopIds) {
                ids += id
                history += id
                say(filter.push(stream.push(id)))
                if (filter.stopped) break
                if (ids.size == ask.maxTokens) reason = "length" else if (held.size >= model.context) reason = "context"
                if (reason != "stop") break
                val before = System.nanoTime()
                id = sampler.pick(append(id, stop), history)
                spent += System.nanoTime() - before
                steps++
            }
            say(filter.push(stream.finish()) + filter.finish())
            val prompted = segments.sumOf { it.count }
            return Answer(text.toString(), ids.toIntArray(), reason, prompted, cached, timings(begun, prefilled, first))
        }

        private fun say(piece: String) {
            stop.check()
            if (piece.isEmpty()) return
            text.append(piece)
            emit(piece)
        }

        private fun timings(begun: Long, prefilled: Long, first: Long) = Timings(
            imageMs = times.pixels / 1e6,
            visionMs = times.vision / 1e6,
            prefillMs = (prefilled - begun) / 1e6,
            firstTokenMs = (first - ask.started) / 1e6,
            decodeMs = spent / 1e6,
            tokensPerSecond = if (spent == 0L) 0.0 else steps.toDouble() * TimeUnit.SECONDS.toNanos(1) / spent,
        )
    }

    companion object {
        /**
         * Hashes the files, so that a damaged one never reaches the engine, and opens the bundle. [freeBytes]: what
         * the system has to give. Throws EdgeException.
         */
        fun open(
            bundle: Bundle,
            engine: Engine,
            settings: Settings,
            freeBytes: Long = Long.MAX_VALUE,
            progress: (Double) -> Unit = {},
        ): Session {
            engine.require(bundle, settings, freeBytes)
            bundle.check(progress)
            val tokenizer = Tokenizer.open(bundle.file(bundle.manifest.tokenizer))
            return Session(bundle, engine.open(bundle, settings), tokenizer)
        }
    }
}

/** The segments without their first [count] positions. */
private fun after(segments: List<Segment>, count: Int): List<Segment> {
    var left = count
    return segments.mapNotNull { segment ->
        val skipped = minOf(left, segment.count)
        left -= skipped
        when {
            skipped == segment.count -> null
            skipped == 0 -> segment
            segment is Segment.Tokens -> Segment.Tokens(segment.ids.copyOfRange(skipped, segment.ids.size))
            else -> (segment as Segment.Rows).from(skipped)
        }
    }
}

private fun Segment.Rows.from(row: Int): Segment.Rows {
    val width = values.size / count
    return Segment.Rows(values.copyOfRange(row * width, values.size), "$key[$row:]", count - row)
}
