/** Bundles that are newer, damaged, cut off or unsafe; and archives of them. */
package dev.edgevlm.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.ByteArrayInputStream
import java.io.ByteArrayOutputStream
import java.io.File
import java.nio.file.Files
import java.util.zip.ZipEntry
import java.util.zip.ZipOutputStream

class BundleTest {
    private val onnx = FakeEngine { throw UnsupportedOperationException() }

    @Test
    fun schemaTwoAndOneOpenAndAreWhole() {
        assertEquals(2, Bundle.open(place("bundle")).apply { check() }.manifest.schema)
        val old = Bundle.open(File(place("data"), "schema1")).apply { check() }.manifest
        assertEquals(1, old.schema)
        assertEquals(setOf("bos", "ids", "image"), old.prompt.restarts)
        assertTrue(old.sees)
    }

    @Test
    fun anotherSchemaIsNamedWithThoseThatAreRead() {
        val error = spoilt("\"schema\": 2" to "\"schema\": 3")
        assertSays(error, "schema 3", "1 and 2")
        assertEquals("a newer version of this app", (error as BundleException).hint)
        assertSays(spoilt("\"schema\": 2" to "\"schema\": 0"), "schema 0")
        assertSays(spoilt("\"schema\": 2" to "\"scheme\": 2"), "no schema number")
    }

    @Test
    fun whatIsMissingOrOddIsNamed() {
        assertSays(spoilt("\"hidden\"" to "\"hiden\""), "decoder lacks hidden")
        assertSays(spoilt("\"layers\": 6" to "\"layers\": 0"), "has layers 0")
        assertSays(spoilt("\"fit\": \"pad\"" to "\"fit\": \"guess\""), "fit \"guess\"")
        assertSays(spoilt("\"cosine\": 0." to "\"distance\": 0."), "tolerance")
        assertSays(spoilt("{" to "", whole = true), "no JSON")
    }

    @Test
    fun aPathThatLeadsOutIsRefused() {
        for (path in listOf("../decoder.onnx", "/etc/passwd", "C:\\\\x", "a/../../x", "\\\\\\\\server\\\\x", "")) {
            assertSays(spoilt("\"path\": \"decoder.onnx\"" to "\"path\": \"$path\""), "outside the bundle")
        }
    }

    @Test
    fun aLinkMayLeadOnlyToTheFileItself() {
        val folder = copied()
        val elsewhere = temporary()
        val file = File(folder, "decoder.onnx").apply { copyTo(File(elsewhere, "blob")) }
        assertTrue(file.delete())
        Files.createSymbolicLink(file.toPath(), File(elsewhere, "blob").toPath())
        Bundle.open(folder).check()
        val other = File(elsewhere, "blob").readBytes().apply { this[0]++ }
        File(elsewhere, "blob").writeBytes(other)
        assertSays(thrown<BundleException> { Bundle.open(folder) }, "decoder.onnx", "not the file")
    }

    @Test
    fun aFileThatIsCutOrFlippedIsFound() {
        val folder = copied()
        val file = File(folder, "vision.onnx.data")
        val content = file.readBytes()
        file.writeBytes(content.copyOf(content.size / 2))
        assertSays(thrown<BundleException> { Bundle.open(folder) }, "vision.onnx.data", "copied whole")
        file.writeBytes(content.apply { this[size / 2]++ })
        assertSays(thrown<BundleException> { Bundle.open(folder).check() }, "vision.onnx.data", "sha256")
        assertTrue(file.delete())
        assertSays(thrown<BundleException> { Bundle.open(folder) }, "lacks vision.onnx.data")
    }

    @Test
    fun aGoldenFileThatLiesIsRefusedBeforeAnythingIsAllocated() {
        fun refused(header: String, data: ByteArray = ByteArray(8)): String {
            val file = File(temporary(), "golden.safetensors")
            val length = ByteArray(8).also { it[0] = header.length.toByte(); it[1] = (header.length shr 8).toByte() }
            file.writeBytes(length + header.toByteArray() + data)
            return thrown<BundleException> { Golden.load(file) }.message!!
        }
        fun entry(shape: String, offsets: String) =
            "{\"dtype\": \"F32\", \"shape\": $shape, \"data_offsets\": $offsets}"
        assertTrue("lies in" in refused("{\"a\": ${entry("[3]", "[0, 8]")}}"))
        assertTrue("begins at" in refused("{\"a\": ${entry("[1]", "[4, 8]")}}"))
        assertTrue("take 4" in refused("{\"a\": ${entry("[1]", "[0, 4]")}}"))
        assertTrue("stands twice" in refused("{\"a\": ${entry("[1]", "[0, 4]")}, \"a\": ${entry("[1]", "[4, 8]")}}"))
        assertTrue("shape" in refused("{\"a\": ${entry("[4611686018427387904, 4611686018427387904]", "[0, 8]")}}"))
        assertTrue("has no picture" in refused("{\"a\": ${entry("[2]", "[0, 8]")}}"))
        assertTrue("nested" in refused("[".repeat(250)))
        assertTrue("header of" in refused("").let { _ ->
            val file = File(temporary(), "golden.safetensors").apply { writeBytes(ByteArray(8) { -1 }) }
            thrown<BundleException> { Golden.load(file) }.message!!
        })
    }

    @Test
    fun aZipIsCheckedBeforeItReplacesAnything() {
        val root = temporary()
        val store = Store(root)
        val bundle = store.addZip("demo", ByteArrayInputStream(zipped(place("bundle"))), onnx)
        assertEquals(File(root, "demo"), bundle.folder)
        val broken = copied().apply { File(this, "decoder.onnx").run { writeBytes(readBytes().apply { this[99]++ }) } }
        val error = thrown<BundleException> { store.addZip("demo", ByteArrayInputStream(zipped(broken)), onnx) }
        assertSays(error, "decoder.onnx")
        store.find("demo")!!.check()
        val cut = zipped(place("bundle")).let { it.copyOf(it.size / 2) }
        thrown<BundleException> { store.addZip("demo", ByteArrayInputStream(cut), onnx) }
        assertSays(thrown<BundleException> { store.addZip("x", ByteArrayInputStream(ByteArray(99)), onnx) }, "no zip")
        store.find("demo")!!.check()
        assertEquals(listOf("demo"), root.list()!!.toList())
    }

    @Test
    fun anArchiveThatUnpacksToMoreThanTheRoomHereIsRefused() {
        val out = ByteArrayOutputStream()
        ZipOutputStream(out).use { zip ->
            zip.putNextEntry(ZipEntry(MANIFEST))
            repeat(100) { zip.write(ByteArray(1 shl 16)) }
        }
        assertTrue(out.size() < 10_000)
        val root = temporary()
        val (store, archive) = Store(root, { 6_000_000L }) to ByteArrayInputStream(out.toByteArray())
        assertSays(thrown<BundleException> { store.addZip("x", archive, onnx) }, "larger than the room")
        assertEquals(0, root.list()!!.size)
    }

    @Test
    fun anArchiveThatClimbsOutIsRefused() {
        val out = ByteArrayOutputStream()
        ZipOutputStream(out).use { it.putNextEntry(ZipEntry("../../evil")); it.write(1) }
        val root = temporary()
        val archive = ByteArrayInputStream(out.toByteArray())
        assertSays(thrown<BundleException> { Store(root).addZip("x", archive, onnx) }, "outside itself")
        assertEquals(0, root.list()!!.size)
    }

    @Test
    fun anImportThatWasKilledLeavesTheOldBundle() {
        val root = temporary()
        val files = place("bundle").listFiles()!!.map { Offered(it.name) { it.inputStream() } }
        Store(root).add("demo", files, onnx)
        File(root, ".part-demo").mkdirs()
        assertTrue(File(root, "demo").renameTo(File(root, ".old-demo"))) // killed between the two renames
        val again = Store(root)
        again.find("demo")!!.check()
        assertEquals(listOf("demo"), root.list()!!.toList())
        assertEquals(1, again.bundles().size)
        again.add("../.old-x.part", files, onnx) // a name says nothing of what was cut off
        assertEquals(2, Store(root).bundles().size)
        val stop = Stop()
        thrown<StoppedException> { again.add("other", files, onnx, stop) { stop.now() } }
        assertNull(again.find("other"))
        assertFalse(File(root, ".part-other").exists())
    }

    @Test
    fun aBundleForAnotherEngineOrTooLargeIsNamed() {
        val bundle = Bundle.open(place("bundle"))
        val large = FakeEngine(size = 3L shl 30) { throw UnsupportedOperationException() }
        val error = thrown<EngineException> { Session.open(bundle, large, Settings(1), freeBytes = 1L shl 30) }
        assertSays(error, "3072 MB", "1024 MB")
        val folder = copied()
        val manifest = File(folder, MANIFEST)
        manifest.writeText(manifest.readText().replace("\"format\": \"onnx\"", "\"format\": \"gguf\""))
        val other = thrown<EngineException> { Session.open(Bundle.open(folder), onnx, Settings(1)) }
        assertSays(other, "gguf", "fake opens onnx")
    }

    private fun spoilt(change: Pair<String, String>, whole: Boolean = false): EdgeException {
        val folder = copied()
        val manifest = File(folder, MANIFEST)
        val text = manifest.readText()
        val (old, new) = change
        val made = if (whole) text.replaceFirst(old, new) else text.replace(old, new)
        assertTrue("$old is not in it", made != text)
        manifest.writeText(made)
        return thrown<EdgeException> { Bundle.open(folder) }
    }

    private fun zipped(folder: File): ByteArray = ByteArrayOutputStream().also { out ->
        ZipOutputStream(out).use { zip ->
            for (file in folder.listFiles()!!) {
                zip.putNextEntry(ZipEntry("the-bundle/${file.name}"))
                zip.write(file.readBytes())
            }
        }
    }.toByteArray()
}
