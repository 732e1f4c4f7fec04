/** What a manifest says of a model: its images, its prompt, its decoder's sizes. Schema 2, and 1 as 2 spells it. */
package dev.edgevlm.core

enum class Fit { PAD, CROP, STRETCH, LONG_EDGE }

/** [support]: pixels to either side that a kernel looks at. */
enum class Resample(val support: Double) { BICUBIC(2.0), BILINEAR(1.0), LANCZOS(3.0) }

private const val LONGEST_EDGE = 8192
private const val LARGEST_SIZE = 4096 // pixels of the square's edge: more would take more memory than a device has

/** How an image is divided: its longer edge into [grid] tiles or fewer, as many as [imageTokens] allow; null: all. */
class ViewsSpec(val grid: Int, val imageTokens: Int?)

/** How an image becomes pixels. [views] null: as one view. */
class ImageSpec(
    val size: Int,
    val fit: Fit,
    val background: List<Int>,
    val resample: Resample,
    val mean: List<Double>,
    val std: List<Double>,
    val longEdge: Int? = null,
    val views: ViewsSpec? = null,
) {
    companion object {
        fun of(told: Fields): ImageSpec {
            val background = told.ids("background")
            val (mean, std) = told.numbers("mean") to told.numbers("std")
            val size = told.count("size")
            if (size > LARGEST_SIZE) told.odd("size")
            if (background.size != 3 || background.any { it > 255 }) told.odd("background")
            if (mean.size != 3) told.odd("mean")
            if (std.size != 3) told.odd("std")
            val fit: Fit = one(told, "fit")
            val longEdge = if ("long_edge" in told && told["long_edge"] != null) told.count("long_edge") else null
            if ((fit == Fit.LONG_EDGE) == (longEdge == null) || (longEdge ?: 1) > LONGEST_EDGE) told.odd("long_edge")
            val divided = if ("views" in told && told["views"] != null) told.fields("views") else null
            val views = divided?.takeIf { "grid" in it }?.let(::views) // others: one view, as the contract says
            val grid = ((longEdge ?: 0) + size - 1) / size
            if (views != null && (views.grid < 2 || views.grid != grid)) told.odd("views")
            return ImageSpec(size, fit, background, one(told, "resample"), mean, std, longEdge, views)
        }

        private fun views(told: Fields) =
            ViewsSpec(told.count("grid"), if (told["image_tokens"] == null) null else told.count("image_tokens"))

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

/** What an image of several views becomes: [tiles] by rows, [rowEnd] behind each row, and the whole behind all. */
class ViewPieces(val tiles: List<List<Pieces>>, val rowEnd: Pieces, val overview: Pieces) {
    /** Of an image that is divided so. */
    fun of(rows: Int, columns: Int): Pieces =
        tiles.take(rows).flatMap { row -> row.take(columns).flatten() + rowEnd } + overview

    companion object {
        fun of(told: Fields) = ViewPieces(
            told.list("tiles") { row -> (row as? List<*>)?.map { tile -> pieces(tile) ?: told.odd("tiles") } },
            told.list("row_end", Piece::of),
            told.list("overview", Piece::of),
        )

        private fun pieces(told: Any?): Pieces? = (told as? List<*>)?.map { Piece.of(it) ?: return null }
    }
}

/** A chat template as pieces. [views]: instead of [image], of one that is cut. */
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
    val views: ViewPieces? = null,
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
            } ?: views?.let { each ->
                wrong("views.row_end", each.rowEnd) ?: wrong("views.overview", each.overview, "image")
                    ?: each.tiles.flatten().firstNotNullOfOrNull { wrong("views.tiles", it, "image") }
                    ?: "has views.tiles that are no table".takeIf { each.tiles.map { it.size }.distinct().size != 1 }
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
                views = if ("views" in told && told["views"] != null) ViewPieces.of(told.fields("views")) else null,
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
