/** Tokens in, text out: a character that is cut waits for its other bytes. */
package dev.edgevlm.core

/** The pieces together are what the tokenizer decodes. */
class TextStream internal constructor(private val spelling: (Int) -> ByteArray, stripsSpace: Boolean) {
    private var held = ByteArray(0)
    private var atStart = stripsSpace

    /** The text that this token completes; empty while a character is cut. */
    fun push(id: Int): String {
        var bytes = spelling(id)
        if (bytes.isNotEmpty() && atStart) {
            atStart = false
            if (bytes[0] == ' '.code.toByte()) bytes = bytes.copyOfRange(1, bytes.size)
        }
        val all = held + bytes
        val out = StringBuilder()
        var at = 0
        while (at < all.size) {
            val count = character(all, at)
            if (count == 0) break
            if (count > 0) out.append(String(all, at, count, Charsets.UTF_8))
            else repeat(-count) { out.append(REPLACEMENT) }
            at += if (count > 0) count else -count
        }
        held = all.copyOfRange(at, all.size)
        return out.toString()
    }

    /** What is left: bytes that never became a character. */
    fun finish(): String = REPLACEMENT.toString().repeat(held.size).also { held = ByteArray(0) }

    private companion object {
        const val REPLACEMENT = '\uFFFD'

        /** Bytes of the UTF-8 character at [at]; minus the bytes that are none; 0 where the end cuts it. */
        fun character(bytes: ByteArray, at: Int): Int {
            val first = bytes[at].toInt() and 255
            val count = when (first) {
                in 0..0x7F -> return 1
                in 0xC2..0xDF -> 2
                in 0xE0..0xEF -> 3
                in 0xF0..0xF4 -> 4
                else -> return -1
            }
            for (k in 1 until count) {
                if (at + k >= bytes.size) return 0
                // Overlong forms, surrogates, and what lies beyond U+10FFFF.
                val least = if (k == 1) when (first) { 0xE0 -> 0xA0; 0xF0 -> 0x90; else -> 0x80 } else 0x80
                val most = if (k == 1) when (first) { 0xED -> 0x9F; 0xF4 -> 0x8F; else -> 0xBF } else 0xBF
                if ((bytes[at + k].toInt() and 255) !in least..most) return -k
            }
            return count
        }
    }
}

/** Lets text through up to the stop string that is complete first; what may yet become one is held back. */
class StopFilter(strings: List<String>) {
    private val strings = strings.filter { it.isNotEmpty() }
    private var held = ""
    var stopped = false
        private set

    /** What is certain to belong to the answer; nothing once it has stopped. */
    fun push(text: String): String {
        if (stopped) return ""
        val all = held + text
        val first = strings.mapNotNull { s -> all.indexOf(s).takeIf { it >= 0 }?.let { it + s.length to it } }
            .minWithOrNull(compareBy({ it.first }, { it.second }))
        stopped = first != null
        val end = first?.second ?: (all.length - (strings.maxOfOrNull { overlap(all, it) } ?: 0))
        held = if (stopped) "" else all.substring(end)
        return all.substring(0, end)
    }

    /** What was held back, at the end of the answer. */
    fun finish(): String = held.also { held = "" }

    private fun overlap(text: String, stop: String): Int =
        (minOf(text.length, stop.length - 1) downTo 1).find { text.endsWith(stop.substring(0, it)) } ?: 0
}
