/** Bundles on this device: imported beside their place, checked, and only then put into it. */
package dev.edgevlm.core

import java.io.File
import java.io.IOException
import java.io.InputStream
import java.util.zip.ZipException
import java.util.zip.ZipInputStream

private const val PARTIAL = ".part-" // before a name, which never begins with a dot: an import that goes on
private const val REPLACED = ".old-"
private const val MOST_FILES = 1000

/** A file that is offered: its path in the bundle, and its content. */
class Offered(val path: String, val open: () -> InputStream)

/**
 * One folder for each bundle in [root]. Made when the app starts: it clears what a killed one left. [room]: bytes that
 * an import may take.
 */
class Store(private val root: File, private val room: () -> Long = { root.usableSpace }) {
    init {
        root.mkdirs()
        for (left in root.listFiles().orEmpty()) {
            val place = File(root, left.name.removePrefix(REPLACED))
            when {
                left.name.startsWith(PARTIAL) -> left.deleteRecursively()
                left.name.startsWith(REPLACED) -> if (place.exists()) left.deleteRecursively() else left.renameTo(place)
            }
        }
    }

    /** By name. Those that do not open are left out. */
    fun bundles(): List<Bundle> = root.listFiles().orEmpty().sortedBy { it.name }.mapNotNull {
        try {
            Bundle.open(it)
        } catch (_: BundleException) {
            null
        }
    }

    fun find(name: String): Bundle? = File(root, name).takeIf { it.isDirectory }?.let(Bundle::open)

    /** Of a folder, on any kind of storage. See [add]. */
    fun add(
        name: String,
        files: List<Offered>,
        engine: Engine,
        stop: Stop = Stop(),
        progress: (Double) -> Unit = {},
    ): Bundle =
        taken(name, engine, stop, progress) { folder ->
            if (files.size > MOST_FILES) throw BundleException("${files.size} files are no bundle", "choose its folder")
            val copy = Copy(room(), stop)
            for (file in files) file.open().use { copy.all(it, inside(folder, file.path)) }
        }

    /** Of a zip archive, whose files may lie in one folder of it. */
    fun addZip(
        name: String,
        archive: InputStream,
        engine: Engine,
        stop: Stop = Stop(),
        progress: (Double) -> Unit = {},
    ): Bundle =
        taken(name, engine, stop, progress) { folder ->
            val (zip, copy) = ZipInputStream(archive) to Copy(room(), stop)
            try {
                var entry = zip.nextEntry ?: throw BundleException("this is no zip archive", "choose a zip of a bundle")
                var count = 0
                while (true) {
                    if (++count > MOST_FILES) throw BundleException("more than $MOST_FILES files are no bundle")
                    if (!entry.isDirectory) copy.all(zip, inside(folder, entry.name))
                    entry = zip.nextEntry ?: break
                }
            } catch (error: ZipException) {
                throw BundleException("the archive is damaged: ${error.message}", cause = error)
            }
        }

    /** Writes into a folder beside, checks all of it, and lets it take the old one's place. */
    private fun taken(
        name: String,
        engine: Engine,
        stop: Stop,
        progress: (Double) -> Unit,
        write: (File) -> Unit,
    ): Bundle {
        val clean = name.replace(Regex("[^A-Za-z0-9._-]"), "-").trim('.').take(60).trim('.').ifEmpty { "bundle" }
        val partial = File(root, PARTIAL + clean).apply { deleteRecursively() }
        if (!partial.mkdirs()) throw BundleException("there is no room for ${partial.name}", "free some storage")
        try {
            write(partial)
            val found = partial.walkTopDown().find { it.name == MANIFEST }?.parentFile
                ?: throw BundleException("there is no $MANIFEST in it", "choose the folder or the zip of a bundle")
            val bundle = Bundle.open(found)
            engine.require(bundle, Settings(1), Long.MAX_VALUE)
            bundle.check { share ->
                stop.check()
                progress(share)
            }
            return Bundle.open(put(found, File(root, clean)))
        } catch (error: IOException) {
            throw BundleException("the bundle could not be copied: ${error.message}", "free some storage", error)
        } finally {
            partial.deleteRecursively()
        }
    }

    private fun put(from: File, place: File): File {
        val old = File(root, REPLACED + place.name).apply { deleteRecursively() }
        if (place.exists() && !place.renameTo(old)) throw BundleException("${place.name} cannot be replaced", "restart")
        if (!from.renameTo(place)) {
            old.renameTo(place)
            throw BundleException("${place.name} cannot be put into its place", "restart")
        }
        old.deleteRecursively()
        return place
    }

    private fun inside(folder: File, path: String): File {
        val file = File(folder, path)
        if (!file.canonicalPath.startsWith(folder.canonicalPath + File.separator)) {
            throw BundleException("the archive names a file outside itself: $path", "do not use this bundle")
        }
        return file.apply { parentFile?.mkdirs() }
    }

    /** Of an import's files, one after another: an archive may unpack to any size. [left]: bytes that they may have. */
    private class Copy(private var left: Long, private val stop: Stop) {
        private val buffer = ByteArray(1 shl 18)

        fun all(from: InputStream, to: File) = to.outputStream().use { out ->
            while (true) {
                stop.check()
                val count = from.read(buffer)
                if (count < 0) break
                left -= count
                if (left < 0) throw BundleException("the bundle is larger than the room here", "free some storage")
                out.write(buffer, 0, count)
            }
        }
    }
}
