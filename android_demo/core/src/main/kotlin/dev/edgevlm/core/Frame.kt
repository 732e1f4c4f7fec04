/** A camera's frame, as Android gives it: brightness and two colour differences in planes of their own. */
package dev.edgevlm.core

/** Bytes of a plane; from one line to the next, and from one value of a line to the next. */
class Plane(val bytes: ByteArray, val line: Int, val step: Int)

/**
 * `YUV_420_888`: [y] has a value for each pixel, [u] and [v] one for each square of two by two. [turns]: how many
 * quarters, clockwise, make it upright. Throws ImageException where the planes are too short for its size.
 */
class Frame(
    private val width: Int,
    private val height: Int,
    private val y: Plane,
    private val u: Plane,
    private val v: Plane,
    private val turns: Int,
) {
    init {
        val planes = listOf(y to 1, u to 2, v to 2)
        val whole = width > 0 && height > 0 && planes.all { (plane, share) ->
            val (columns, lines) = (width + share - 1) / share to (height + share - 1) / share
            val last = (lines - 1).toLong() * plane.line + (columns - 1).toLong() * plane.step
            plane.line > 0 && plane.step > 0 && last < plane.bytes.size
        }
        if (!whole) throw ImageException("a frame of $width × $height does not fit its planes")
    }

    /** Upright, by JFIF's numbers, in 16 bits of fixed point. */
    fun picture(): Picture {
        val flat = turns % 2 == 0
        val (across, down) = if (flat) width to height else height to width
        val rgb = ByteArray(3 * width * height)
        for (line in 0 until height) for (column in 0 until width) {
            val (left, top) = when (turns and 3) {
                0 -> column to line
                1 -> height - 1 - line to column
                2 -> width - 1 - column to height - 1 - line
                else -> line to width - 1 - column
            }
            put(rgb, 3 * (top * across + left), column, line)
        }
        return Picture(across, down, rgb)
    }

    private fun put(rgb: ByteArray, at: Int, column: Int, line: Int) {
        val bright = (at(y, column, line) shl 16) + 32768
        val blue = at(u, column / 2, line / 2) - 128
        val red = at(v, column / 2, line / 2) - 128
        rgb[at] = held(bright + 91881 * red) // 1.402
        rgb[at + 1] = held(bright - 22554 * blue - 46802 * red) // 0.344136 and 0.714136
        rgb[at + 2] = held(bright + 116130 * blue) // 1.772
    }

    private fun at(plane: Plane, column: Int, line: Int) =
        plane.bytes[line * plane.line + column * plane.step].toInt() and 255

    private fun held(value: Int): Byte = (value shr 16).coerceIn(0, 255).toByte()
}
