/** Text to token ids and back, on the tokenizer.json of a bundle: BPE with byte fallback, and byte-level BPE. */
package dev.edgevlm.core

import java.io.File
import java.io.IOException

private const val FILE = "tokenizer.json"
private const val LARGEST_FILE = 1L shl 27 // bytes: the largest that is published has 34 MB
private const val SPARE = 1024 // ids that a small vocabulary may leave out

/** Takes all text as text: a special token that a user types is spelled out. Decoding skips special ids. */
class Tokenizer(json: String) {
    private val pieces: Array<String?>
    private val special: Set<Int>
    private val raw: Added // found in the text as it is
    private val normalised: Added // found in normalised text
    private val normaliser: Normaliser
    private val words: Words
    private val wordsWithin: Words
    private val bpe: Bpe
    private val byteLevel: Boolean
    private val stripsSpace: Boolean

    init {
        val root = Json.parse(json) as? Map<*, *> ?: throw BundleException("tokenizer.json is no object")
        val told = root["model"] as? Map<*, *> ?: throw BundleException("tokenizer.json has no model")
        val model = Fields(told, "the model of tokenizer.json")
        if (model["type"] != "BPE") refused("has a model of the type ${model["type"]}")
        val numbered = model.fields("vocab")
        val vocab = (told["vocab"] as Map<*, *>).keys.associate { it as String to numbered.id(it) }
        for (name in listOf("dropout", "continuing_subword_prefix", "end_of_word_suffix")) {
            if (name in model && model[name] !in setOf(null, "")) refused("has a model with $name ${model[name]}")
        }
        val added = (root["added_tokens"] as? List<*>).orEmpty().map { AddedToken(Fields(it as Map<*, *>, FILE)) }
        pieces = arrayOfNulls(size(vocab.values + added.map { it.id }))
        for ((piece, id) in vocab) pieces[id] = piece
        for (token in added) pieces[token.id] = token.content
        special = added.filter { it.special }.map { it.id }.toSet()
        normaliser = Normaliser(root["normalizer"])
        raw = Added(added.filter { !it.normalized }) { it }
        normalised = Added(added.filter { it.normalized }, normaliser::apply)
        words = Words.of(root["pre_tokenizer"])
        wordsWithin = Words.of(within(root["pre_tokenizer"]))
        bpe = Bpe(
            vocab,
            model.list("merges") { merge(it) },
            if ("unk_token" in model) vocab[model["unk_token"] as? String ?: ""] else null,
            fuse = "fuse_unk" in model && model["fuse_unk"] == true,
            byteFallback = "byte_fallback" in model && model["byte_fallback"] == true,
            wholeWords = "ignore_merges" in model && model["ignore_merges"] == true,
        )
        val decoder = steps(root["decoder"], "decoders")
        byteLevel = decoder.any { it["type"] == "ByteLevel" }
        if (!byteLevel && decoder.none { it["type"] == "ByteFallback" }) {
            refused("has the decoder ${decoder.map { it["type"] }}")
        }
        stripsSpace = decoder.any { it["type"] == "Strip" && it["start"] != 0L }
    }

    /** One more than the largest id. */
    val size: Int get() = pieces.size

    /**
     * No special ids are added. A lone surrogate counts as U+FFFD. [start]: whether the text stands where one begins;
     * some tokenizers put a space before such a text only.
     */
    fun encode(text: String, start: Boolean = true): IntArray {
        val whole = String(text.toByteArray(Charsets.UTF_16BE), Charsets.UTF_16BE)
        val out = ArrayList<Int>(whole.length / 2)
        val cut = if (start) words else wordsWithin
        var begins = true
        raw.split(whole) { outer, id ->
            if (id != null) out += id
            else normalised.split(normaliser.apply(outer)) { inner, innerId ->
                if (innerId != null) out += innerId else cut.cut(inner, begins).forEach { bpe.encode(it, out) }
                begins = false
            }
            begins = false
        }
        return out.toIntArray()
    }

    fun decode(ids: Iterable<Int>): String = stream().let { s -> ids.joinToString("") { s.push(it) } + s.finish() }

    /** Tokens in, text out, as soon as its characters are whole. */
    fun stream() = TextStream(::spelling, stripsSpace)

    private fun spelling(id: Int): ByteArray {
        val piece = pieces.getOrNull(id)
        return when {
            piece == null || id in special -> ByteArray(0)
            byteLevel -> ByteLevel.bytes(piece) ?: piece.toByteArray()
            piece.length == 6 && piece.startsWith("<0x") && piece.endsWith(">") ->
                byteArrayOf(piece.substring(3, 5).toIntOrNull(16)?.toByte() ?: refused("has the piece $piece"))
            else -> piece.replace('▁', ' ').toByteArray()
        }
    }

    companion object {
        /** Throws BundleException when the file is damaged, or of a kind that is not read. */
        fun open(file: File): Tokenizer = try {
            if (file.length() > LARGEST_FILE) throw BundleException("$FILE has ${file.length()} bytes")
            Tokenizer(file.readText())
        } catch (error: IOException) {
            throw BundleException("tokenizer.json cannot be read: ${error.message}", cause = error)
        } catch (error: IllegalArgumentException) {
            throw BundleException("tokenizer.json is no JSON ${error.message}", cause = error)
        } catch (error: ClassCastException) {
            throw BundleException("tokenizer.json is damaged: ${error.message}", cause = error)
        }

        /** One more than the largest id; of ids with more holes than any vocabulary has, an array would be huge. */
        private fun size(ids: List<Int>): Int {
            val largest = ids.maxOrNull() ?: -1
            if (largest >= 4L * ids.size + SPARE) {
                throw BundleException("$FILE has the id $largest among ${ids.size} tokens")
            }
            return largest + 1
        }

        /** The pre-tokenizer of a text that does not begin one. */
        private fun within(told: Any?): Any? = when (told) {
            is Map<*, *> -> told.mapValues { (key, value) ->
                if (key == "prepend_scheme" && value == "first") "never" else within(value)
            }
            is List<*> -> told.map(::within)
            else -> told
        }

        private fun merge(told: Any?): Pair<String, String>? = when (told) {
            is String -> told.split(' ', limit = 2).takeIf { it.size == 2 }?.let { it[0] to it[1] }
            is List<*> -> if (told.size == 2) (told[0] as String) to (told[1] as String) else null
            else -> null
        }
    }
}

private class AddedToken(told: Fields) {
    val id = told.id("id")
    val content = told.text("content")
    val special = told.flag("special")
    val normalized = told.flag("normalized")

    init {
        if (!special) for (name in listOf("lstrip", "rstrip", "single_word")) {
            if (told.flag(name)) refused("has the added token $content with $name")
        }
    }
}

/** Added tokens in a text: the leftmost, and of those the longest. Special ones are matched, and stay text. */
private class Added(tokens: List<AddedToken>, spelled: (String) -> String) {
    private val byContent = tokens.associateBy { spelled(it.content) }.filterKeys { it.isNotEmpty() }
    private val byFirst = byContent.keys.sortedByDescending { it.length }.groupBy { it[0] }

    /** Stretches of text, with null, and ids between them. */
    fun split(text: String, found: (String, Int?) -> Unit) {
        var start = 0
        var at = 0
        while (at < text.length) {
            val match = byFirst[text[at]]?.find { text.startsWith(it, at) }
            val token = match?.let(byContent::getValue)
            if (token != null && !token.special) {
                if (at > start) found(text.substring(start, at), null)
                found(match, token.id)
                start = at + match.length
            }
            at += match?.length ?: 1
        }
        if (start < text.length) found(text.substring(start), null)
    }
}
