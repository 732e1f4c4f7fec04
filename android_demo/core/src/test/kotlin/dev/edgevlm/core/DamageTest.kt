/** What a bundle from elsewhere may claim, and what a process that is killed leaves behind. */
package dev.edgevlm.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File
import java.io.InputStream
import java.lang.management.ManagementFactory
import java.nio.ByteBuffer
import java.util.zip.ZipEntry
import java.util.zip.ZipOutputStream

class DamageTest {
    private val manifest = File(place("bundle"), MANIFEST).readText()

    @Test
    fun aManifestThatSaysSomethingTwiceIsRefused() {
        val twice = manifest.replaceFirst("\"name\"", "\"name\": \"other\", \"name\"")
        assertSays(thrown<BundleException> { Manifest.parse(twice) }, "name stands twice")
    }

    @Test
    fun aNameThatFillsTheScreenIsRefused() {
        val long = manifest.replaceFirst(Regex("\"recipe\": \"[^\"]*\""), "\"recipe\": \"${"x".repeat(4097)}\"")
        assertSays(thrown<BundleException> { Manifest.parse(long) }, "has recipe \"xxx")
    }

    @Test
    fun aTableWhoseHeaderLiesIsRefused() {
        fun refused(version: Int, length: Int, header: String): String {
            val bytes = ByteBuffer.allocate(200_000).order(java.nio.ByteOrder.LITTLE_ENDIAN)
            bytes.put("\u0093NUMPY".toByteArray(Charsets.ISO_8859_1)).put(version.toByte()).put(0)
            if (version == 1) bytes.putShort(length.toShort()) else bytes.putInt(length)
            bytes.put(header.toByteArray())
            bytes.position(0)
            return thrown<BundleException> { Npy.read("table.npy", bytes) }.message!!
        }
        fun header(shape: String) = "{'descr': '<f4', 'fortran_order': False, 'shape': ($shape), }"
        assertTrue("header of 100000" in refused(2, 100_000, header("1,")))
        assertTrue("header of -1" in refused(2, -1, header("1,")))
        assertTrue("in 199" in refused(1, 80, header("50, 1000")))
        assertTrue("shape" in refused(1, 90, header("4294967296, 4294967296")))
        assertTrue("shape" in refused(1, 110, header("2000000000, 2000000000, 2000000000")))
        assertTrue("its header is" in refused(1, 20_000, "x".repeat(20_000)))
    }

    @Test
    fun anArchiveOfNumbersIsReadNoFurtherThanItSays() {
        val file = File(temporary(), "golden.npz")
        ZipOutputStream(file.outputStream()).use { zip ->
            zip.putNextEntry(ZipEntry("picture.npy"))
            zip.write(ByteArray(1 shl 20))
        }
        assertSays(thrown<BundleException> { Golden.load(file) }, "no .npy file")
        val content = file.readBytes()
        val list = content.indices.last { content[it] == 'P'.code.toByte() && content[it + 1] == 'K'.code.toByte() &&
            content[it + 2] == 1.toByte() }
        for (at in 24..27) content[list + at] = if (at == 27) 0x7F else -1 // two gigabytes
        file.writeBytes(content)
        assertSays(thrown<BundleException> { Golden.load(file) }, "picture.npy of 2147483647 bytes")
    }

    @Test
    fun anImportThatIsKilledHalfWayLeavesTheOldBundle() {
        val root = temporary()
        val files = place("bundle").listFiles()!!.map { Offered(it.name) { it.inputStream() } }
        val engine = FakeEngine { throw UnsupportedOperationException() }
        Store(root).add("demo", files, engine)
        val options = ManagementFactory.getRuntimeMXBean().inputArguments
            .filter { it.startsWith("-Dedge.") || it.startsWith("-XX:") && ("Verif" in it || "Unlock" in it) }
        val java = File(System.getProperty("java.home"), "bin/java").path
        val path = System.getProperty("java.class.path")
        val importing = ProcessBuilder(listOf(java, "-Xmx64m", "-cp", path) + options + listOf(
            Importing::class.java.name, root.path)).redirectErrorStream(true).start()
        val said = importing.inputStream.bufferedReader().readLine()
        importing.destroyForcibly().waitFor()
        assertEquals("half way", said)
        assertEquals(listOf(".part-demo", "demo"), root.list()!!.sorted())
        val again = Store(root)
        assertEquals(listOf("demo"), root.list()!!.toList())
        again.find("demo")!!.check()
        again.add("demo", files, engine).check()
        assertNull(again.find(".part-demo"))
    }
}

/** A process of its own, which imports the demo bundle into a folder, and never comes to its end. */
object Importing {
    @JvmStatic
    fun main(arguments: Array<String>) {
        val files = place("bundle").listFiles()!!.map { Offered(it.name) { Endless(it.inputStream()) } }
        Store(File(arguments[0])).add("demo", files, FakeEngine { throw UnsupportedOperationException() })
    }

    private class Endless(private val stream: InputStream) : InputStream() {
        private var begun = false

        override fun read(): Int = throw UnsupportedOperationException()

        override fun read(bytes: ByteArray, offset: Int, length: Int): Int {
            if (begun) {
                println("half way")
                System.out.flush()
                Thread.sleep(60_000)
            }
            begun = true
            return stream.read(bytes, offset, minOf(length, 100))
        }
    }
}
