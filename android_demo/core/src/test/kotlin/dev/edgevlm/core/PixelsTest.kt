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
