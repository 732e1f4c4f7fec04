/** Byte-pair encoding: a word becomes symbols, and the pair of the lowest rank is joined until there is none. */
package dev.edgevlm.core

import java.util.PriorityQueue

/** [unknown]: what stands for a character that has neither a symbol nor bytes; [fuse]: once for several. */
internal class Bpe(
    private val vocab: Map<String, Int>,
    merges: List<Pair<String, String>>,
    private val unknown: Int?,
    private val fuse: Boolean,
    private val byteFallback: Boolean,
    private val wholeWords: Boolean,
) {
    private val joins = HashMap<Long, Join>(2 * merges.size)

    private class Join(val rank: Int, val id: Int)

    /** A pair that may be joined, as it was when it was found. */
    private class Offer(val rank: Int, val left: Int, val right: Int, val a: Int, val b: Int, val id: Int)

    init {
        merges.forEachIndexed { rank, (a, b) ->
            val (left, right, whole) = listOf(a, b, a + b).map {
                vocab[it] ?: throw BundleException("tokenizer.json merges $a and $b, and its vocabulary lacks $it")
            }
            joins.getOrPut(key(left, right)) { Join(rank, whole) }
        }
    }

    fun encode(word: String, out: MutableList<Int>) {
        if (word.isEmpty()) return
        val whole = if (wholeWords) vocab[word] else null
        if (whole != null) out += whole else joined(symbols(word)).filterTo(out) { it >= 0 }
    }

    private fun symbols(word: String): IntArray {
        val ids = ArrayList<Int>(word.length)
        var hole = false // the last character had no id at all
        var at = 0
        while (at < word.length) {
            val count = Character.charCount(word.codePointAt(at))
            val piece = word.substring(at, at + count)
            at += count
            val id = vocab[piece]
            val bytes = if (id != null || !byteFallback) null else
                piece.toByteArray().map { vocab["<0x%02X>".format(it)] }.takeIf { null !in it }
            when {
                id != null -> ids += id
                bytes != null -> bytes.mapTo(ids) { it!! }
                unknown != null && !(fuse && hole) -> ids += unknown
            }
            hole = id == null && bytes == null
        }
        return ids.toIntArray()
    }

    /** The leftmost of equal ranks first. What was joined to its left neighbour is −1. */
    private fun joined(ids: IntArray): IntArray {
        val next = IntArray(ids.size) { it + 1 }
        val before = IntArray(ids.size) { it - 1 }
        val queue = PriorityQueue<Offer>(compareBy({ it.rank }, { it.left }))
        fun offer(left: Int) {
            val right = if (left < 0) return else next[left]
            val join = if (right >= ids.size) return else joins[key(ids[left], ids[right])] ?: return
            queue += Offer(join.rank, left, right, ids[left], ids[right], join.id)
        }
        ids.indices.forEach(::offer)
        while (true) {
            val best = queue.poll() ?: return ids
            if (ids[best.left] != best.a || ids[best.right] != best.b || next[best.left] != best.right) continue
            ids[best.left] = best.id
            ids[best.right] = -1
            next[best.left] = next[best.right]
            if (next[best.right] < ids.size) before[next[best.right]] = best.left
            offer(before[best.left])
            offer(best.left)
        }
    }

    private fun key(left: Int, right: Int) = left.toLong() shl 32 or right.toLong()
}
