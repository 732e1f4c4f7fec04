/** A conversation becomes segments: pieces of the template and what is said, tokenised around the images. */
package dev.edgevlm.core

/** What a decoder is fed. */
sealed interface Segment {
    val count: Int

    class Tokens(val ids: IntArray) : Segment {
        override val count get() = ids.size
    }

    /** float32 `[count, hidden]` of an image; [key] is equal for equal images. */
    class Rows(val values: FloatArray, val key: String, override val count: Int) : Segment
}

/** What the decoder sees of an image: the rows of each view, [rows] × [columns] tiles and the whole, or that alone. */
class Seen(val views: List<Segment.Rows>, val rows: Int = 0, val columns: Int = 0)

/** A question about [images], which stand before it, and its answer once there is one. */
class Turn(
    val question: String,
    val images: List<Seen> = emptyList(),
    val answer: String? = null,
    val answerIds: IntArray? = null, // as the model wrote it: goes before [answer], whose ids may be others
)

/** [system] null takes the model's own; "" leaves it out. Throws UsageException. */
fun segments(spec: PromptSpec, tokenizer: Tokenizer, turns: List<Turn>, system: String? = null): List<Segment> =
    Assembly(spec, tokenizer).apply { conversation(turns, system) }.finished()

private class Assembly(private val spec: PromptSpec, private val tokenizer: Tokenizer) {
    private val found = ArrayList<Segment>()
    private val ids = ArrayList<Int>()
    private val text = StringBuilder()
    private var after: String? = null // what the text that is being collected stands behind

    init {
        spec.bosId?.let {
            ids += it
            after = "bos"
        }
    }

    fun conversation(turns: List<Turn>, told: String?) {
        if (!told.isNullOrEmpty() && spec.question.afterSystem == null) {
            throw UsageException("the model's prompt has no place for a system message", "say it in the question")
        }
        val system = told ?: spec.defaultSystem
        turns.forEachIndexed { number, turn ->
            // Images stand first in a turn: wherever `image_question_when` wants one, it is.
            val asked = (if (turn.images.isEmpty()) null else spec.imageQuestion) ?: spec.question
            val first = if (system.isEmpty()) null else asked.afterSystem
            fill(if (number > 0) asked.later else first ?: asked.first, turn, system)
            when {
                turn.answerIds != null -> {
                    fill(spec.generation, turn, system)
                    add(turn.answerIds.asList())
                    add(spec.endIds)
                }
                turn.answer != null -> {
                    fill(spec.answer, turn, system)
                    add(spec.endIds)
                }
                number == turns.lastIndex -> fill(spec.generation, turn, system)
                else -> throw UsageException("turn ${number + 1} of ${turns.size} has no answer")
            }
        }
    }

    fun finished(): List<Segment> {
        endText()
        endIds()
        return found
    }

    private fun fill(pieces: Pieces, turn: Turn, system: String) {
        for (piece in pieces) when (piece) {
            is Piece.Text -> text.append(piece.text)
            is Piece.Ids -> add(piece.ids)
            is Piece.Slot -> when (piece.name) {
                "system" -> text.append(trimmed(system, piece.trim))
                "answer" -> text.append(trimmed(turn.answer.orEmpty(), piece.trim))
                else -> {
                    turn.images.forEach(::place)
                    // Images stand to the left of the question: only without one does that side lose its space.
                    text.append(trimmed(turn.question, if (turn.images.isEmpty()) piece.trim else right(piece.trim)))
                }
            }
        }
    }

    private fun place(image: Seen) {
        val views = image.views.iterator()
        val pieces = if (image.rows == 0) spec.image else spec.views?.of(image.rows, image.columns) ?: spec.image
        for (piece in pieces) when (piece) {
            is Piece.Text -> text.append(piece.text)
            is Piece.Ids -> add(piece.ids)
            is Piece.Slot -> {
                endText()
                endIds()
                found += views.next()
                after = "image"
            }
        }
    }

    private fun add(more: List<Int>) {
        if (more.isEmpty()) return
        endText()
        ids += more
        after = "ids"
    }

    private fun endText() {
        if (text.isNotEmpty()) {
            ids += tokenizer.encode(text.toString(), start = after == null || after in spec.restarts).asList()
            text.setLength(0)
        }
    }

    private fun endIds() {
        if (ids.isNotEmpty()) found += Segment.Tokens(ids.toIntArray())
        ids.clear()
    }
}

/** Of the sides, the right one. */
private fun right(sides: String) = if (sides == "both" || sides == "right") "right" else "none"

/** Python's `strip`: Unicode's white space, and the separators U+001C to U+001F. */
private fun isSpace(c: Char) =
    c in '\t'..'\r' || c in '\u001c'..' ' || c in '\u2000'..'\u200a' ||
        c in "\u0085\u00a0\u1680\u2028\u2029\u202f\u205f\u3000"

private fun trimmed(text: String, sides: String): String {
    val left = if (sides == "left" || sides == "both") text.dropWhile(::isSpace) else text
    return if (sides == "right" || sides == "both") left.dropLastWhile(::isSpace) else left
}
