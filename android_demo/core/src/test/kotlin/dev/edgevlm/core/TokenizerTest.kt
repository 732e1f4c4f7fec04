/** Texts to ids and back, as Python has them. */
package dev.edgevlm.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File
import java.security.MessageDigest

class TokenizerTest {
    private val all = vectors(File(place("golden"), "texts.json"))

    @Suppress("UNCHECKED_CAST")
    private val texts = all["texts"] as List<String>

    @Suppress("UNCHECKED_CAST")
    private val told = all["tokenizers"] as Map<String, Map<String, Any?>>

    @Test
    fun everyAwkwardTextHasItsIds() = eachTokenizer { name, tokenizer, own ->
        listOf("ids" to true, "within" to false).forEach { (field, start) ->
            (own[field] as List<*>).forEachIndexed { place, ids ->
                val found = tokenizer.encode(texts[place], start).toList()
                assertEquals("$name $field: ${texts[place]}", ids.numbers(), found)
            }
        }
    }

    @Test
    fun everyFuzzedTextHasItsIds() = eachTokenizer { name, tokenizer, own ->
        val fuzzed = texts.drop(all.number("awkward"))
        assertEquals(3000, fuzzed.size)
        val digests = (own["digests"] as String).chunked(8)
        val wrong = fuzzed.indices.filter { digest(tokenizer.encode(fuzzed[it])) != digests[it] }
        assertTrue("$name: ${wrong.size}, as ${wrong.take(3).map { Json.write(fuzzed[it]) }}", wrong.isEmpty())
    }

    @Test
    fun idsHaveTheirText() = eachTokenizer { name, tokenizer, own ->
        for (row in own["decoded"].items()) {
            assertEquals("$name ${row["ids"]}", row["text"], tokenizer.decode(row["ids"].numbers()))
        }
    }

    @Test
    fun aLoneSurrogateIsTheReplacementCharacter() {
        val tokenizer = tokenizer("byte_fallback")
        assertEquals(tokenizer.encode("a\uFFFDb").toList(), tokenizer.encode("a\uD83Db").toList())
    }

    @Test
    fun whatIsNotReadIsRefusedByName() {
        val whole = File(place("data"), "tokenizer.json").readText()
        assertSays(thrown<BundleException> { Tokenizer(whole.replace("\"BPE\"", "\"Unigram\"")) }, "Unigram")
        assertSays(thrown<BundleException> { Tokenizer(whole.replace("\"Prepend\"", "\"Lowercase\"")) }, "Lowercase")
        val words = File(place("golden"), "tokenizers/qwen2.json").readText()
        assertSays(thrown<BundleException> { Tokenizer(words.replace("\\\\p{N}|", "\\\\p{N}{1,2}|")) }, "Qwen2")
        val file = File(temporary(), "tokenizer.json").apply { writeText(whole.take(500)) }
        assertSays(thrown<BundleException> { Tokenizer.open(file) }, "no JSON")
    }

    @Test
    fun anIdFarBeyondTheOthersIsRefused() {
        val whole = File(place("data"), "tokenizer.json").readText()
        for (id in listOf(9_999_999, Int.MAX_VALUE)) {
            val told = whole.replaceFirst(Regex("\"</s>\": *2\\b"), "\"</s>\": $id")
            assertTrue(told != whole)
            assertSays(thrown<BundleException> { Tokenizer(told) }, "the id $id among")
        }
    }

    @Test
    fun aLongTextTakesNoSquareOfItsLength() {
        val ids = tokenizer("byte_fallback").encode("the sign says ".repeat(20_000))
        assertTrue(ids.size > 20_000)
    }

    @Test
    fun stopStringsEndATextWhereverTheyFall() {
        val filter = StopFilter(listOf("</s>", "END"))
        assertEquals("a", filter.push("a<"))
        assertEquals("<b", filter.push("b<"))
        assertEquals("", filter.push("/s"))
        assertEquals("", filter.push(">rest"))
        assertTrue(filter.stopped)
        assertEquals("", filter.push("more") + filter.finish())
    }

    private fun eachTokenizer(test: (String, Tokenizer, Map<String, Any?>) -> Unit) {
        assertEquals(7, told.size)
        for ((name, own) in told) test(name, tokenizer(name), own)
    }

    private fun digest(ids: IntArray) =
        hex(MessageDigest.getInstance("SHA-256").digest(ids.joinToString(",").toByteArray())).take(8)
}
