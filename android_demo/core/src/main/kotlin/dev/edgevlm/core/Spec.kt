/** What a manifest says of a model: its images, its prompt, its decoder's sizes. Schema 2, and 1 as 2 spells it. */
package dev.edgevlm.core

enum class Fit { PAD, CROP, STRETCH, LONG_EDGE }

/** [support]: pixels to either side that a kernel looks at. */
enum class Resample(val support: Double) { BICUBIC(2.0), BILINEAR(1.0), LANCZOS(3.0) }

private const val LONGEST_EDGE = 8192

/** How an image becomes pixels. */
class ImageSpec(
    val size: Int,
    val fit: Fit,
    val background: List<Int>,
    val resample: Resample,
    val mean: List<Double>,
    val std: List<Double>,
    val longEdge: Int? = null,
) {
    companion object {
        fun of(told: Fields): ImageSpec {
            val background = told.ids("background")
            val (mean, std) = told.numbers("mean") to told.numbers("std")
            if (background.size != 3 || background.any { it > 255 }) told.odd("background")
            if (mean.size != 3) told.odd("mean")
            if (std.size != 3) told.odd("std")
            val fit: Fit = one(told, "fit")
            val longEdge = if ("long_edge" in told && told["long_edge"] != null) told.count("long_edge") else null
            if ((fit == Fit.LONG_EDGE) == (longEdge == null) || (longEdge ?: 1) > LONGEST_EDGE) told.odd("long_edge")
            return ImageSpec(told.count("size"), fit, background, one(told, "resample"), mean, std, longEdge)
        }

        private inline fun <reified T : Enum<T>> one(told: Fields, name: String): T =
            enumValues<T>().find { it.name.lowercase() == told.text(name) } ?: told.odd(name)
    }
}

/** What a prompt is made of. */
sealed interface Piece {
    /** Tokenised together with the text beside it. */
    data class Text(val text: String) : Piece

    /** Token ids as they are. */
    data class Ids(val ids: List<Int>) : Piece

    /** Where [name] stands: system, content, answer or image; [trim]: none, left, right or both. */
    data class Slot(val name: String, val trim: String) : Piece

    companion object {
        private val SLOTS = setOf("system", "content", "answer", "image")
        private val TRIMS = setOf("none", "left", "right", "both")

        /** Null where it is no piece. */
        fun of(told: Any?): Piece? {
            val map = told as? Map<*, *> ?: return null
            val kind = map.keys.singleOrNull { it in setOf("text", "ids", "slot") } ?: return null
            val value = map[kind]
            val trim = map["trim"] ?: "none"
            return when (kind) {
                "text" -> (value as? String)?.let(::Text)
                "ids" -> (value as? List<*>)?.ifEmpty { null }?.map { Fields.id(it) ?: return null }?.let(::Ids)
                else -> if (value in SLOTS && trim in TRIMS) Slot(value as String, trim as String) else null
            }
        }
    }
}

typealias Pieces = List<Piece>

/** From where a turn begins to where the answer's pieces do. [afterSystem] null: there is no system message. */
class Questions(val first: Pieces, val afterSystem: Pieces?, val later: Pieces) {
    companion object {
        fun of(told: Fields) = Questions(
            told.list("first", Piece::of),
            if (told["after_system"] == null) null else told.list("after_system", Piece::of),
            told.list("later", Piece::of),
        )
    }
}

/** A chat template as pieces. */
class PromptSpec(
    val question: Questions,
    val imageQuestion: Questions?,
    val image: Pieces,
    val answer: Pieces,
    val generation: Pieces,
    val defaultSystem: String,
    val imageTokens: Int,
    val bosId: Int?,
    val restarts: Set<String>,
    val endIds: List<Int>,
    val stopIds: Set<Int>,
    val stopStrings: List<String>,
) {
    /** Slots that are missing, or stand where nothing can fill them. */
    private fun fault(): String? {
        fun wrong(where: String, pieces: Pieces, vararg expected: String) =
            if (pieces.filterIsInstance<Piece.Slot>().map { it.name } == expected.toList()) null
            else "has the slots of $where elsewhere than ${expected.toList()}"
        val asked = listOfNotNull(question, imageQuestion)
        return wrong("image", image, "image") ?: wrong("answer", answer, "answer") ?: wrong("generation", generation)
            ?: asked.firstNotNullOfOrNull { each ->
                wrong("first", each.first, "content") ?: wrong("later", each.later, "content")
                    ?: each.afterSystem?.let { wrong("after_system", it, "system", "content") }
                    ?: "has no slot for its system message".takeIf { each.afterSystem == null && defaultSystem != "" }
            } ?: if (stopIds.isEmpty()) "has no stop_ids" else null
    }

    companion object {
        fun of(told: Fields): PromptSpec {
            val restarts = told.texts("restarts").toSet()
            if (!setOf("bos", "ids", "image").containsAll(restarts)) told.odd("restarts")
            val spec = PromptSpec(
                question = Questions.of(told.fields("question")),
                imageQuestion = told["image_question"]?.let { Questions.of(told.fields("image_question")) },
                image = told.list("image", Piece::of),
                answer = told.list("answer", Piece::of),
                generation = told.list("generation", Piece::of),
                defaultSystem = told.text("default_system"),
                imageTokens = told.count("image_tokens"),
                bosId = if (told["bos_id"] == null) null else told.id("bos_id"),
                restarts = restarts,
                endIds = told.ids("end_ids"),
                stopIds = told.ids("stop_ids").toSet(),
                stopStrings = told.texts("stop_strings"),
            )
            spec.fault()?.let { told.fail(it) }
            return spec
        }

        /** Of schema 1, where `system`, `user`, `assistant` and `image` are texts with one mark each. */
        fun ofSchema1(told: Fields): PromptSpec {
            fun text(text: String) = if (text.isEmpty()) emptyList() else listOf(Piece.Text(text))
            fun around(field: String, mark: String, slot: String): Pieces {
                val halves = told.text(field).split(mark)
                if (halves.size != 2) told.fail("has $field ${told[field]}, which does not hold $mark once")
                return text(halves[0]) + Piece.Slot(slot, "none") + text(halves[1])
            }
            val user = around("user", "{text}", "content")
            return PromptSpec(
                question = Questions(user, around("system", "{text}", "system") + user, user),
                imageQuestion = null,
                image = around("image", "<image>", "image"),
                answer = around("assistant", "{text}", "answer"),
                generation = text(told.text("generation")),
                defaultSystem = told.text("default_system"),
                imageTokens = told.count("image_tokens"),
                bosId = if (told["bos_id"] == null) null else told.id("bos_id"),
                restarts = setOf("bos", "ids", "image"),
                endIds = listOf(told.id("end_id")),
                stopIds = told.ids("stop_ids").toSet(),
                stopStrings = told.texts("stop_strings"),
            )
        }
    }
}

/** Sizes of the decoder. [context]: positions that its part was made for. */
class DecoderSpec(
    val layers: Int,
    val heads: Int,
    val kvHeads: Int,
    val headDim: Int,
    val hidden: Int,
    val vocab: Int,
    val context: Int,
) {
    companion object {
        fun of(told: Fields) = DecoderSpec(
            layers = told.count("layers"),
            heads = told.count("heads"),
            kvHeads = told.count("kv_heads"),
            headDim = told.count("head_dim"),
            hidden = told.count("hidden"),
            vocab = told.count("vocab"),
            context = told.count("context"),
        )
    }
}
