/** Images to pixels: the bits of Pillow and NumPy. */
package dev.edgevlm.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File

class PixelsTest {
    private val told = vectors(File(place("golden"), "images.json"))

    @Test
    fun everyPictureHasPillowsBits() {
        val images = told["images"].items()
        assertTrue(images.size > 10)
        for (entry in images) {
            val spec = ImageSpec.of(Fields(told + entry, "image"))
            assertEquals("$entry", entry["sha256"], digest(pixels(made(entry), spec)))
        }
    }

    @Test
    fun everyDivisionHasPillowsBits() {
        val found = told["divided"].items()
        assertEquals(8, found.size)
        for (entry in found) {
            val (size, edge) = entry.number("size") to entry.number("long_edge")
            val own = mapOf("fit" to "long_edge", "resample" to "lanczos")
            val grid = mapOf("grid" to ((edge + size - 1) / size).toLong(), "image_tokens" to null)
            val spec = ImageSpec.of(Fields(told + entry + own + ("views" to grid), "image"))
            val made = views(made(entry), spec, entry.number("most"))
            assertEquals("$entry", entry["grid"].numbers(), listOf(made.rows, made.columns))
            assertEquals("$entry", entry["sha256"], digest(made.pixels.flatMap { it.asList() }.toFloatArray()))
        }
    }

    @Test
    fun aDivisionThatIsNoneIsRefused() {
        val entry = told + told["divided"].items()[0] + mapOf("fit" to "long_edge", "resample" to "lanczos")
        for (grid in listOf(1L, 3L, 5L)) {
            val views = mapOf("grid" to grid, "image_tokens" to null)
            assertSays(thrown<BundleException> { ImageSpec.of(Fields(entry + ("views" to views), "image")) }, "views")
        }
    }

    @Test
    fun aDivisionThatIsNotReadIsOneView() {
        val views = mapOf("grids" to listOf(listOf(1L, 2L)), "side" to 2L, "most_tiles" to null, "image_tokens" to null)
        val entry = told + told["images"].items()[0] + ("views" to views)
        assertEquals(null, ImageSpec.of(Fields(entry, "image")).views)
    }

    @Test
    fun aSquareThatWouldTakeGigabytesIsRefused() {
        val entry = told + told["images"].items()[0] + ("size" to 4097L)
        assertSays(thrown<BundleException> { ImageSpec.of(Fields(entry, "image")) }, "size 4097")
    }

    @Test
    fun aPhotoOf200MegapixelsIsDecodedSmaller() {
        val (width, height) = 16320 to 12240
        assertEquals(4, sampleSize(width, height))
        assertEquals(listOf(1, 1, 2, 1, 32768), listOf(1, 4095, 4096, 2048, 100_000_000).map { sampleSize(it, 1) })
        for (longest in listOf(1, 2047, 2048, 4095, 4096, 16320, 1 shl 30)) {
            val size = sampleSize(1, longest)
            assertTrue("$longest / $size", longest / size < 4096 && (size == 1 || longest / size >= 2048))
        }
    }

    @Test
    fun aPhotoThatTheSystemCannotDecodeIsNamed() {
        val heic = byteArrayOf(0, 0, 0, 24) + "ftypheic".toByteArray()
        assertSays(undecodable(heic), "HEIC", "this Android cannot decode")
        assertEquals("a JPEG or PNG of it", undecodable(heic).hint)
        assertSays(undecodable(byteArrayOf(0, 0, 0, 28) + "ftypavif".toByteArray()), "AVIF")
        assertSays(undecodable("%PDF-1.7 what".toByteArray().copyOf(PHOTO_HEAD)), "or damaged")
        assertSays(undecodable(byteArrayOf(0, 0, 0)), "or damaged")
        assertSays(undecodable(ByteArray(0)), "empty")
    }

    @Test
    fun aPictureWithoutPixelsIsRefused() {
        assertSays(thrown<ImageException> { Picture(0, 5, ByteArray(0)) }, "0 × 5")
    }

    /** As `tests/golden/write.py` makes it. */
    private fun made(entry: Map<String, Any?>): Picture {
        val (width, height) = entry.number("width") to entry.number("height")
        var x = entry.number("seed")
        return Picture(width, height, ByteArray(3 * width * height) {
            x = x * 1664525 + 1013904223
            if (entry["hard"] == true) (x shr 31).toByte() else (x ushr 24).toByte()
        })
    }
}
