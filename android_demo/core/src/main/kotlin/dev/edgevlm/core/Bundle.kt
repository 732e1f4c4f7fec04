/** Bundle and manifest: read, bounded, and checked before an engine sees a file. `docs/bundle.md` is the contract. */
package dev.edgevlm.core

import java.io.File
import java.io.IOException
import java.security.MessageDigest

const val MANIFEST = "manifest.json"
private const val SCHEMA = 2L
private const val LARGEST_MANIFEST = 16L shl 20 // bytes: some ten thousand are usual
private const val LONGEST_NAME = 4096
private val ROLES = listOf("vision", "projector", "decoder")

/** A file of a bundle: [path] is relative, with forward slashes. */
data class FileEntry(val path: String, val bytes: Long, val sha256: String)

/** An input or output. A text in [shape] names an axis that varies. */
data class Tensor(val name: String, val dtype: String, val shape: List<Any>)

/** An artifact that covers one or more adjacent roles; the first of [files] is the one to open. */
class Part(
    val covers: List<String>,
    val format: String,
    val scheme: String,
    val files: List<FileEntry>,
    val inputs: List<Tensor>,
    val outputs: List<Tensor>,
    val tolerance: Map<String, Double>,
)

class Manifest(
    val schema: Int,
    val name: String,
    val recipe: String,
    val source: String,
    val image: ImageSpec,
    val prompt: PromptSpec,
    val decoder: DecoderSpec,
    val goldenQuestion: String,
    val goldenSegments: List<List<Int>?>,
    val parts: List<Part>,
    val tokenizer: FileEntry,
    val golden: FileEntry,
) {
    val files: List<FileEntry> get() = (parts.flatMap { it.files } + tokenizer + golden).distinct()
    val bytes: Long get() = files.sumOf { it.bytes }

    /** Whether it answers questions about images. */
    val sees: Boolean get() = parts.any { "vision" in it.covers }

    fun part(role: String): Part =
        parts.find { role in it.covers } ?: throw BundleException("the bundle has no part for the role $role")

    /** Of an image: all tiles that it may have, and the whole. */
    val mostViews: Int get() {
        val views = image.views ?: return 1
        val all = minOf(views.grid.toLong() * views.grid + 1, Int.MAX_VALUE.toLong()).toInt()
        return if (views.imageTokens == null) all else minOf(all, views.imageTokens / prompt.imageTokens)
    }

    /** Throws BundleException where an image may have tiles that the prompt has no pieces for. */
    private fun requireTiles() {
        val (grid, tiles) = (image.views ?: return).grid to prompt.views?.tiles.orEmpty()
        if (grid > minOf(tiles.size, tiles.firstOrNull()?.size ?: 0)) {
            throw BundleException("an image has $grid tiles a side, and the prompt no pieces for them")
        }
    }

    companion object {
        /** Throws BundleException on whatever is not a manifest that this reader knows. */
        fun parse(text: String): Manifest {
            val root = try {
                Json.parse(text, unique = true)
            } catch (error: IllegalArgumentException) {
                throw BundleException("$MANIFEST is no JSON ${error.message}", cause = error)
            }
            val told = Fields(root as? Map<*, *> ?: throw BundleException("$MANIFEST is no object"), MANIFEST)
            val schema = if ("schema" in told) told["schema"] as? Long else null
            if (schema == null) throw BundleException("$MANIFEST carries no schema number", "choose a bundle")
            if (schema !in SCHEMA - 1..SCHEMA) {
                val hint = if (schema > SCHEMA) "a newer version of this app" else "export the bundle again"
                val read = "${SCHEMA - 1} and $SCHEMA"
                throw BundleException("the bundle has schema $schema, and this app reads $read", hint)
            }
            return of(told, schema.toInt())
        }

        private fun of(told: Fields, schema: Int): Manifest {
            val prompt = told.fields("prompt")
            val golden = prompt.fields("golden")
            val segments = golden["segments"] as? List<*> ?: golden.odd("segments")
            val parts = told.objects("parts").map(::part)
            if (parts.isEmpty()) told.odd("parts")
            return Manifest(
                schema = schema,
                name = name(told, "name"),
                recipe = name(told, "recipe"),
                source = told.fields("source").text("sha256"),
                image = ImageSpec.of(told.fields("image")),
                prompt = if (schema == 1) PromptSpec.ofSchema1(prompt) else PromptSpec.of(prompt),
                decoder = DecoderSpec.of(told.fields("decoder")),
                goldenQuestion = golden.text("question"),
                goldenSegments = segments.map { ids ->
                    if (ids == null) null
                    else (ids as? List<*>)?.map { Fields.id(it) ?: golden.odd("segments") } ?: golden.odd("segments")
                },
                parts = parts,
                tokenizer = file(told.fields("tokenizer")),
                golden = file(told.fields("golden")),
            ).apply { requireTiles() }
        }

        private fun name(told: Fields, field: String): String =
            told.text(field).also { if (it.length > LONGEST_NAME) told.odd(field) }

        private fun part(told: Fields): Part {
            val covers = told.texts("covers")
            if (covers.isEmpty() || !ROLES.containsAll(covers)) told.odd("covers")
            val files = told.objects("files").map(::file)
            if (files.isEmpty()) told.odd("files")
            val tolerance = told.table("tolerance")
            val known = setOf("max_abs", "cosine", "tokens")
            if (!known.containsAll(tolerance.keys)) told.odd("tolerance")
            return Part(
                covers = covers,
                format = told.text("format"),
                scheme = told.text("scheme"),
                files = files,
                inputs = told.objects("inputs").map(::tensor),
                outputs = told.objects("outputs").map(::tensor),
                tolerance = tolerance,
            )
        }

        private fun tensor(told: Fields) =
            Tensor(told.text("name"), told.text("dtype"), told.list("shape") { it as? String ?: it as? Long })

        private fun file(told: Fields): FileEntry {
            val path = told.text("path")
            val names = path.split('/', '\\')
            // A manifest is untrusted: under the rules of any system, the file lies inside the bundle.
            if (path.isEmpty() || names[0].isEmpty() || ".." in names || path.getOrNull(1) == ':' || '\u0000' in path) {
                throw BundleException("$MANIFEST names a file outside the bundle: $path", "do not use this bundle")
            }
            return FileEntry(path, told.size("bytes"), told.text("sha256"))
        }
    }
}

class Bundle private constructor(val folder: File, val manifest: Manifest) {
    fun file(entry: FileEntry) = File(folder, entry.path)

    /** Hash every file. [progress] is told the share that is done; it may throw to end this. Throws BundleException. */
    fun check(progress: (Double) -> Unit = {}) {
        val total = manifest.bytes
        var done = 0L
        for (entry in manifest.files) {
            requireHash(entry) { read -> progress((done + read).toDouble() / total) }
            done += entry.bytes
        }
    }

    private fun requireHash(entry: FileEntry, progress: (Long) -> Unit) {
        val digest = try {
            sha256(file(entry), progress)
        } catch (error: IOException) {
            throw BundleException("${entry.path} cannot be read: ${error.message}", cause = error)
        }
        if (digest != entry.sha256) {
            val found = "its sha256 is ${digest.take(12)}…"
            throw BundleException("${entry.path} is not the file that was exported: $found")
        }
    }

    companion object {
        /** Read the manifest, and see that every file is there with its size. Throws BundleException. */
        fun open(folder: File): Bundle {
            val file = File(folder, MANIFEST)
            if (!file.isFile) throw BundleException("${folder.name} has no $MANIFEST", "choose the folder of a bundle")
            if (file.length() > LARGEST_MANIFEST) throw BundleException("$MANIFEST has ${file.length()} bytes")
            val text = try {
                file.readText()
            } catch (error: IOException) {
                throw BundleException("$MANIFEST cannot be read: ${error.message}", cause = error)
            }
            val bundle = Bundle(folder, Manifest.parse(text))
            val root = folder.canonicalFile.toPath()
            for (entry in bundle.manifest.files) {
                val here = bundle.file(entry)
                if (!here.isFile) throw BundleException("the bundle lacks ${entry.path}")
                if (here.length() != entry.bytes) {
                    val sizes = "${here.length()} bytes, not ${entry.bytes}"
                    throw BundleException("${entry.path} has $sizes: was it copied whole?")
                }
                // A link may lead outside to what the manifest describes, and to nothing else.
                if (!here.canonicalFile.toPath().startsWith(root)) bundle.requireHash(entry) {}
            }
            return bundle
        }
    }
}

/** In hexadecimal. [progress] is told how many bytes were read. */
internal fun sha256(file: File, progress: (Long) -> Unit = {}): String {
    val digest = MessageDigest.getInstance("SHA-256")
    val buffer = ByteArray(1 shl 18)
    var read = 0L
    file.inputStream().use { stream ->
        while (true) {
            val count = stream.read(buffer)
            if (count < 0) break
            digest.update(buffer, 0, count)
            read += count
            progress(read)
        }
    }
    return hex(digest.digest())
}

internal fun hex(bytes: ByteArray): String = bytes.joinToString("") { "%02x".format(it) }
