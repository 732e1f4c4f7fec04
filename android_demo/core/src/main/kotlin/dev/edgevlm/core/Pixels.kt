/** An image becomes the pixels that the model was trained on, to the last bit what Pillow and NumPy make of it. */
package dev.edgevlm.core

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest
import kotlin.math.PI
import kotlin.math.ceil
import kotlin.math.round
import kotlin.math.sin

/** 8 bits a channel, rows from the top: r, g, b, r, … Upright, and on white where it was transparent. */
class Picture(val width: Int, val height: Int, val rgb: ByteArray) {
    init {
        if (width < 1 || height < 1) throw ImageException("the picture has no pixels: $width × $height")
        require(rgb.size.toLong() == 3L * width * height) { "${rgb.size} bytes for $width × $height pixels" }
    }

    internal fun cut(left: Int, top: Int, newWidth: Int, newHeight: Int): Picture {
        if (newWidth == width && newHeight == height) return this
        val out = ByteArray(3 * newWidth * newHeight)
        for (y in 0 until newHeight) {
            System.arraycopy(rgb, 3 * ((top + y) * width + left), out, 3 * y * newWidth, 3 * newWidth)
        }
        return Picture(newWidth, newHeight, out)
    }
}

private const val MAX_SIDE = 8192 // a longer image is shrunk before it is padded: the square would take gigabytes
private const val MAX_RATIO = 16 // a longer image loses its ends before it is cropped
private const val BITS = 22 // of a weight's fraction

/** float32 `[1, 3, size, size]`. */
fun pixels(picture: Picture, spec: ImageSpec): FloatArray {
    val square = when (spec.fit) {
        Fit.PAD -> padded(picture, spec)
        Fit.CROP -> cropped(picture, spec)
        Fit.STRETCH -> stretched(picture, spec)
        Fit.LONG_EDGE -> stretched(scaled(picture, checkNotNull(spec.longEdge), spec.resample), spec)
    }
    return normalised(square, spec)
}

/** Of an image of `size` × `size`. */
internal fun normalised(square: Picture, spec: ImageSpec): FloatArray {
    val tables = Array(3) { c -> FloatArray(256) { ((it / 255.0 - spec.mean[c]) / spec.std[c]).toFloat() } }
    val area = spec.size * spec.size
    return FloatArray(3 * area) { tables[it / area][square.rgb[3 * (it % area) + it / area].toInt() and 255] }
}

/** Equal for equal pixels: what an image's embeddings are remembered by. */
internal fun digest(pixels: FloatArray): String {
    val bytes = ByteBuffer.allocate(4 * pixels.size).order(ByteOrder.LITTLE_ENDIAN)
    bytes.asFloatBuffer().put(pixels)
    return hex(MessageDigest.getInstance("SHA-256").digest(bytes.array()))
}

private fun padded(picture: Picture, spec: ImageSpec): Picture {
    val longest = maxOf(picture.width, picture.height)
    val held = if (longest <= MAX_SIDE) picture else {
        fun shrunk(edge: Int) = maxOf(1, round(edge.toDouble() * MAX_SIDE / longest).toInt()) // halves to even
        resized(picture, shrunk(picture.width), shrunk(picture.height), spec.resample)
    }
    val side = maxOf(held.width, held.height)
    val square = ByteArray(3 * side * side)
    for (i in square.indices) square[i] = spec.background[i % 3].toByte()
    val (left, top) = (side - held.width) / 2 to (side - held.height) / 2
    for (y in 0 until held.height) {
        System.arraycopy(held.rgb, 3 * y * held.width, square, 3 * ((top + y) * side + left), 3 * held.width)
    }
    return resized(Picture(side, side, square), spec.size, spec.size, spec.resample)
}

private fun cropped(picture: Picture, spec: ImageSpec): Picture {
    val cutX = maxOf(0L, (picture.width - MAX_RATIO.toLong() * picture.height) / 2).toInt()
    val cutY = maxOf(0L, (picture.height - MAX_RATIO.toLong() * picture.width) / 2).toInt()
    val held = picture.cut(cutX, cutY, picture.width - 2 * cutX, picture.height - 2 * cutY)
    val short = minOf(held.width, held.height)
    val width = (spec.size.toDouble() * held.width / short).toInt()
    val height = (spec.size.toDouble() * held.height / short).toInt()
    val whole = resized(held, width, height, spec.resample)
    return whole.cut((width - spec.size) / 2, (height - spec.size) / 2, spec.size, spec.size)
}

private fun stretched(picture: Picture, spec: ImageSpec): Picture {
    // Rows are resized first: where they grow, all of them together would take gigabytes.
    val tall = picture.height > MAX_SIDE && picture.width < spec.size
    val held = if (tall) resized(picture, picture.width, spec.size, spec.resample) else picture
    return resized(held, spec.size, spec.size, spec.resample)
}

private fun scaled(picture: Picture, long: Int, how: Resample): Picture =
    longEdge(picture.width, picture.height, long).let { (width, height) -> resized(picture, width, height, how) }

/** Width and height with a longer edge of [long], and a shorter one that is even. */
internal fun longEdge(width: Int, height: Int, long: Int): Pair<Int, Int> {
    val ratio = width.toDouble() / height
    val wide = width >= height
    val rounded = (if (wide) long / ratio else long * ratio).toInt()
    val short = maxOf(1, rounded + rounded % 2)
    return if (wide) long to short else short to long
}

/** As Pillow does it: rows, then columns, each rounded to 8 bits, weights in fixed point. */
internal fun resized(picture: Picture, width: Int, height: Int, how: Resample): Picture {
    val wide = if (picture.width == width) picture.rgb else
        Pass(picture.width, width, how).along(picture.rgb, picture.height, 3, 3 * picture.width, 3 * width)
    val made = if (picture.height == height) wide else
        Pass(picture.height, height, how).along(wide, width, 3 * width, 3, 3)
    return Picture(width, height, made)
}

/** One axis of [old] pixels to [new] ones: which inputs each output looks at, and their weights. */
private class Pass(old: Int, private val new: Int, how: Resample) {
    private val first = IntArray(new)
    private val weights: Array<IntArray>

    init {
        val scale = old.toDouble() / new
        val stretch = maxOf(scale, 1.0)
        val support = how.support * stretch
        val raw = DoubleArray(ceil(support).toInt() * 2 + 1)
        weights = Array(new) { x ->
            val center = (x + 0.5) * scale
            first[x] = maxOf((center - support + 0.5).toInt(), 0)
            val count = minOf((center + support + 0.5).toInt(), old) - first[x]
            var sum = 0.0
            for (k in 0 until count) {
                raw[k] = kernel(how, (k + first[x] - center + 0.5) * (1.0 / stretch))
                sum += raw[k]
            }
            IntArray(count) { k ->
                val weight = (if (sum != 0.0) raw[k] / sum else raw[k]) * (1 shl BITS)
                (if (weight < 0) weight - 0.5 else weight + 0.5).toInt()
            }
        }
    }

    /** [step] bytes to the next pixel of the axis, [other] to the next of [lines] lines, [otherNew] in the result. */
    fun along(from: ByteArray, lines: Int, step: Int, other: Int, otherNew: Int): ByteArray {
        val out = ByteArray(3 * new * lines)
        for (x in 0 until new) {
            val own = weights[x]
            for (line in 0 until lines) for (c in 0..2) {
                var total = 1 shl (BITS - 1)
                var at = first[x] * step + line * other + c
                for (weight in own) {
                    total += (from[at].toInt() and 255) * weight
                    at += step
                }
                val value = total shr BITS
                out[x * step + line * otherNew + c] = (if (value < 0) 0 else if (value > 255) 255 else value).toByte()
            }
        }
        return out
    }
}

private fun kernel(how: Resample, at: Double): Double {
    val x = if (at < 0) -at else at
    return when {
        how == Resample.BILINEAR -> if (x < 1.0) 1.0 - x else 0.0
        how == Resample.LANCZOS -> if (x < 3.0) sinc(x) * sinc(x / 3) else 0.0
        x < 1.0 -> (1.5 * x - 2.5) * x * x + 1
        x < 2.0 -> (((x - 5) * x + 8) * x - 4) * -0.5
        else -> 0.0
    }
}

private fun sinc(x: Double) = if (x == 0.0) 1.0 else sin(x * PI) / (x * PI)
