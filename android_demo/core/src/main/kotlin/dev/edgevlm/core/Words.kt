/** Before the merges: a text is normalised, and cut into words. What a tokenizer.json asks beyond this is refused. */
package dev.edgevlm.core

import java.text.Normalizer
import java.util.regex.Pattern

private const val NFC = "NFC"

/** Unicode's White_Space, for a character class: Java's own `\s` is ASCII, and Android has no flag that widens it. */
private const val SPACES = "\\t-\\r \\u0085\\u00A0\\u1680\\u2000-\\u200A\\u2028\\u2029\\u202F\\u205F\\u3000"

private const val CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
private const val REST = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
private val KNOWN = mapOf(
    "Qwen2" to "$CONTRACTIONS\\p{N}$REST",
    "Llama 3" to "$CONTRACTIONS\\p{N}{1,3}$REST",
)
private val DIGIT = Pattern.compile("\\p{N}")
private const val GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

internal fun refused(what: String): Nothing =
    throw BundleException("tokenizer.json $what, which this app does not read", "a bundle of another model")

/** Fields of a step, and the steps of a sequence of steps. */
internal fun steps(told: Any?, inner: String): List<Map<*, *>> {
    val step = told as? Map<*, *> ?: return emptyList()
    if (step["type"] != "Sequence") return listOf(step)
    return (step[inner] as? List<*>).orEmpty().flatMap { steps(it, inner) }
}

internal class Normaliser(told: Any?) {
    private val steps = steps(told, "normalizers").map(::step)

    fun apply(text: String) = steps.fold(text) { made, step -> step(made) }

    private fun step(told: Map<*, *>): (String) -> String {
        when (told["type"]) {
            "Prepend" -> (told["prepend"] as? String)?.let { prefix ->
                return { if (it.isEmpty()) it else prefix + it }
            }
            "Replace" -> {
                val from = (told["pattern"] as? Map<*, *>)?.get("String") as? String
                val to = told["content"] as? String
                if (from != null && to != null) return { it.replace(from, to) }
            }
            NFC -> return { Normalizer.normalize(it, Normalizer.Form.NFC) }
        }
        refused("normalises by ${Json.write(told)}")
    }
}

/** Cuts a normalised stretch of a text into words. `begins`: whether it stands where the text begins. */
internal fun interface Words {
    fun cut(text: String, begins: Boolean): List<String>

    companion object {
        fun of(told: Any?): Words {
            val steps = steps(told, "pretokenizers")
            val types = steps.map { it["type"] }
            return when (types) {
                emptyList<Any>() -> Words { text, _ -> listOf(text) }
                listOf("Metaspace") -> Metaspace(steps[0])
                listOf("ByteLevel") -> byteLevel(steps[0], Pattern.compile(GPT2.wide()))
                listOf("Split", "ByteLevel") -> byteLevel(steps[1], pattern(steps[0]))
                listOf("Digits", "ByteLevel") -> digits(steps[0], byteLevel(steps[1], Pattern.compile(GPT2.wide())))
                else -> refused("cuts a text by $types")
            }
        }

        private fun byteLevel(told: Map<*, *>, pattern: Pattern): Words {
            val ownRegex = told["use_regex"] != false
            if (told["add_prefix_space"] != false || ownRegex != (pattern.pattern() == GPT2.wide())) {
                refused("has the pre-tokenizer ${Json.write(told)}")
            }
            return Words { text, _ -> isolated(text, pattern).map(ByteLevel::spelled) }
        }

        /** Each digit for itself, and what lies between as [others] cut it. */
        private fun digits(told: Map<*, *>, others: Words): Words {
            if (told["individual_digits"] != true) refused("has the pre-tokenizer ${Json.write(told)}")
            return Words { text, begins -> isolated(text, DIGIT).flatMap { others.cut(it, begins) } }
        }

        private fun pattern(told: Map<*, *>): Pattern {
            val regex = (told["pattern"] as? Map<*, *>)?.get("Regex")
            if (told["behavior"] != "Isolated" || told["invert"] == true || regex !in KNOWN.values) {
                refused("cuts words by a rule other than that of ${KNOWN.keys.joinToString(" or ")}: $regex")
            }
            return Pattern.compile((regex as String).wide(), Pattern.UNICODE_CASE)
        }

        /** The same pattern with white space spelled out. */
        private fun String.wide() =
            replace("[^\\s", "[^$SPACES").replace("\\S", "[^$SPACES]").replace("\\s", "[$SPACES]")

        /** What matches, and what lies between. */
        private fun isolated(text: String, pattern: Pattern): List<String> {
            val found = ArrayList<String>()
            val matcher = pattern.matcher(text)
            var end = 0
            while (matcher.find()) {
                if (matcher.start() > end) found += text.substring(end, matcher.start())
                if (matcher.end() > matcher.start()) found += matcher.group()
                end = matcher.end()
            }
            if (end < text.length) found += text.substring(end)
            return found
        }
    }
}

/** SentencePiece's: spaces are visible, and one stands before a text, or before each stretch of it. */
private class Metaspace(told: Map<*, *>) : Words {
    private val mark = told["replacement"] as? String ?: refused("has a pre-tokenizer without a replacement")
    private val scheme = told["prepend_scheme"] as? String ?: refused("has a pre-tokenizer without prepend_scheme")
    private val split = told["split"] != false

    init {
        if (mark.length != 1 || scheme !in setOf("always", "first", "never")) refused("prepends $mark by $scheme")
    }

    override fun cut(text: String, begins: Boolean): List<String> {
        val plain = text.replace(" ", mark)
        val prefixed = scheme == "always" || scheme == "first" && begins
        val marked = if (prefixed && !plain.startsWith(mark)) mark + plain else plain
        if (!split) return listOf(marked)
        val found = ArrayList<String>()
        var start = 0
        for (at in 1 until marked.length) if (marked[at] == mark[0]) {
            found += marked.substring(start, at)
            start = at
        }
        return found.apply { add(marked.substring(start)) }
    }
}

/** The byte-level alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 and on. */
internal object ByteLevel {
    private val ofByte = CharArray(256)
    private val toByte = HashMap<Char, Byte>()

    init {
        val plain = (0x21..0x7E) + (0xA1..0xAC) + (0xAE..0xFF)
        var shifted = 0x100
        for (byte in 0..255) {
            ofByte[byte] = if (byte in plain) byte.toChar() else (shifted++).toChar()
            toByte[ofByte[byte]] = byte.toByte()
        }
    }

    fun spelled(text: String): String = text.toByteArray().joinToString("") { ofByte[it.toInt() and 255].toString() }

    /** Null where a character is none of the alphabet. */
    fun bytes(piece: String): ByteArray? = ByteArray(piece.length) { toByte[piece[it]] ?: return null }
}
