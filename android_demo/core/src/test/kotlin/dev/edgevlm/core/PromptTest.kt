/** Conversations to segments, as Python cuts them. */
package dev.edgevlm.core

import org.junit.Assert.assertEquals
import org.junit.Test
import java.io.File

class PromptTest {
    private val told = vectors(File(place("golden"), "prompts.json"))
    private val view = Segment.Rows(FloatArray(0), "image", 2)

    @Test
    fun everyConversationHasItsSegments() {
        val conversations = told["conversations"].items()
        assertEquals(22, conversations.size)
        for (entry in conversations) {
            val turns = entry["turns"].items().map {
                Turn(
                    it["question"] as String,
                    List(it.number("images")) { _ -> seen(it["grid"]?.numbers() ?: listOf(0, 0)) },
                    it["answer"] as String?,
                    it["answer_ids"]?.numbers()?.toIntArray(),
                )
            }
            val tokenizer = tokenizer(entry["tokenizer"] as String)
            val found = segments(spec(entry["prompt"]), tokenizer, turns, entry["system"] as String?)
            val expected = (entry["segments"] as List<*>).map { it?.numbers() }
            assertEquals("$entry", expected, found.map { (it as? Segment.Tokens)?.ids?.toList() })
        }
    }

    private fun seen(grid: List<Int>) = Seen(List(grid[0] * grid[1] + 1) { view }, grid[0], grid[1])

    @Test
    fun whatATemplateHasNoPlaceForIsRefused() {
        val (spec, tokenizer) = spec("chatml") to tokenizer("byte_fallback")
        val told = thrown<UsageException> { segments(spec, tokenizer, listOf(Turn("Hi")), "Be brief.") }
        assertSays(told, "system message")
        assertSays(thrown<UsageException> { segments(spec, tokenizer, listOf(Turn("Hi"), Turn("Ho"))) }, "turn 1 of 2")
    }

    @Test
    fun slotsThatCannotBeFilledAreRefused() {
        @Suppress("UNCHECKED_CAST")
        val own = (told["prompts"] as Map<String, Map<String, Any?>>).getValue("vicuna")
        val broken = own + mapOf("generation" to listOf(mapOf("slot" to "content")))
        assertSays(thrown<BundleException> { PromptSpec.of(Fields(broken, "prompt")) }, "generation")
        assertSays(thrown<BundleException> { PromptSpec.of(Fields(own - "end_ids", "prompt")) }, "lacks end_ids")
        val bare = mapOf("row_end" to own["image"], "overview" to own["image"], "tiles" to listOf(listOf(own["image"])))
        val views = own + ("views" to bare)
        assertSays(thrown<BundleException> { PromptSpec.of(Fields(views, "prompt")) }, "views.row_end")
        val uneven = own["image"].let { listOf(listOf(it), listOf(it, it)) }
        val table = own + ("views" to bare + mapOf("row_end" to emptyList<Any>(), "tiles" to uneven))
        assertSays(thrown<BundleException> { PromptSpec.of(Fields(table, "prompt")) }, "no table")
        val odd = own + ("stop_ids" to listOf(-1L))
        assertSays(thrown<BundleException> { PromptSpec.of(Fields(odd, "prompt")) }, "stop_ids [-1]")
    }

    private fun spec(name: Any?): PromptSpec =
        PromptSpec.of(Fields((told["prompts"] as Map<*, *>)[name] as Map<*, *>, "prompt"))
}
