/** Golden sample: what the reference computed of one image and one question, so that any device can prove its own. */
package dev.edgevlm.core

import java.io.File
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.zip.ZipEntry
import java.util.zip.ZipFile

private const val LARGEST_HEADER = 1L shl 20
private const val LARGEST_ARRAY = 1L shl 28 // bytes: the pixels of the largest square

/** What one set of weights computes: rows `[N, hidden]`, the prompt's last logits, and greedy tokens. */
class Outputs(val imageEmbeds: FloatArray, val logits: FloatArray, val tokens: IntArray)

/**
 * [fp32]: on the checkpoint's weights; [stored]: as the parts hold them; [rounded]: with activations as integers too,
 * where a part's kernels round them.
 */
class Golden private constructor(
    val picture: Picture,
    val pixelValues: FloatArray,
    val fp32: Outputs,
    val stored: Outputs,
    val rounded: Outputs?,
) {
    companion object {
        /** `golden.safetensors`, or schema 1's `golden.npz`. Throws BundleException. */
        fun load(file: File): Golden {
            val found = try {
                if (file.extension == "npz") npz(file) else Safetensors.read(file)
            } catch (error: IOException) {
                throw BundleException("${file.name} cannot be read: ${error.message}", cause = error)
            }
            fun take(name: String, dtype: String, dimensions: Int): Numbers {
                val array = found[name] ?: throw BundleException("${file.name} has no $name")
                if (array.dtype != dtype || array.shape.size != dimensions) {
                    throw BundleException("${file.name} has $name as ${array.dtype} ${array.shape}")
                }
                return array
            }
            fun outputs(suffix: String) = Outputs(
                take("image_embeds$suffix", "F32", 3).floats(),
                take("logits$suffix", "F32", 1).floats(),
                take("tokens$suffix", "I32", 1).ints(),
            )
            val picture = take("picture", "U8", 3)
            if (picture.shape[2] != 3) throw BundleException("${file.name} has a picture of ${picture.shape}")
            return Golden(
                Picture(picture.shape[1], picture.shape[0], picture.bytes()),
                take("pixel_values", "F32", 4).floats(),
                outputs(""),
                outputs(".stored"),
                if ("logits.rounded" in found) outputs(".rounded") else null,
            )
        }

        private fun npz(file: File): Map<String, Numbers> = ZipFile(file).use { zip ->
            val names = mapOf("|u1" to "U8", "<f4" to "F32", "<i4" to "I32")
            zip.entries().asSequence().associate { entry ->
                val array = Npy.read(entry.name, unpacked(zip, entry, file.name))
                entry.name.removeSuffix(".npy") to Numbers(names[array.dtype] ?: array.dtype, array.shape, array.data)
            }
        }
    }
}

/** As many bytes as the archive says, and no more, whatever they were packed into. */
private fun unpacked(zip: ZipFile, entry: ZipEntry, name: String): ByteBuffer {
    if (entry.size !in 0..LARGEST_ARRAY) throw BundleException("$name holds ${entry.name} of ${entry.size} bytes")
    val content = ByteArray(entry.size.toInt())
    var read = 0
    zip.getInputStream(entry).use { stream ->
        while (read < content.size) {
            val count = stream.read(content, read, content.size - read)
            if (count < 0) throw BundleException("$name is damaged: ${entry.name} ends early")
            read += count
        }
    }
    return ByteBuffer.wrap(content)
}

/** Numbers as a file holds them, little-endian. */
internal class Numbers(val dtype: String, val shape: List<Int>, private val data: ByteBuffer) {
    private val own get() = data.duplicate().order(ByteOrder.LITTLE_ENDIAN)

    fun bytes(): ByteArray = own.let { buffer -> ByteArray(buffer.remaining()).also { buffer.get(it) } }

    fun floats(): FloatArray =
        own.asFloatBuffer().let { buffer -> FloatArray(buffer.remaining()).also { buffer.get(it) } }

    fun ints(): IntArray = own.asIntBuffer().let { buffer -> IntArray(buffer.remaining()).also { buffer.get(it) } }
}

internal object Safetensors {
    private val WIDTHS = mapOf("F32" to 4, "F16" to 2, "I32" to 4, "I64" to 8, "I8" to 1, "U8" to 1)

    /** Nothing is allocated that the file does not hold. Throws BundleException. */
    fun read(file: File): Map<String, Numbers> {
        val content = mapped(file, BundleException.AGAIN).order(ByteOrder.LITTLE_ENDIAN)
        return try {
            tensors(content)
        } catch (error: IllegalArgumentException) {
            throw BundleException("${file.name} is damaged: ${error.message}", cause = error)
        }
    }

    private fun tensors(content: ByteBuffer): Map<String, Numbers> {
        require(content.remaining() >= 8) { "it has ${content.remaining()} bytes" }
        val length = content.getLong()
        require(length in 0..minOf(content.remaining().toLong(), LARGEST_HEADER)) { "a header of $length bytes" }
        val text = String(ByteArray(length.toInt()).also { content.get(it) })
        val header = Json.parse(text, unique = true) as? Map<*, *>
        requireNotNull(header) { "its header is no object" }
        val data = content.slice()
        val entries = header.filterKeys { it != "__metadata__" }
            .map { (name, told) -> Entry(name as String, told as? Map<*, *> ?: emptyMap<String, Any>()) }
            .sortedWith(compareBy({ it.start }, { it.end }))
        val end = entries.fold(0L) { position, entry ->
            require(entry.start == position) { "${entry.name} begins at byte ${entry.start}, not $position" }
            entry.end
        }
        require(end == data.remaining().toLong()) { "its tensors take $end bytes of ${data.remaining()}" }
        return entries.associate { entry ->
            val own = data.duplicate()
            own.position(entry.start.toInt()).limit(entry.end.toInt())
            entry.name to Numbers(entry.dtype, entry.shape.map { it.toInt() }, own.slice())
        }
    }

    private class Entry(val name: String, told: Map<*, *>) {
        val dtype = told["dtype"] as? String ?: ""
        val shape = counts(told["shape"])
        private val offsets = counts(told["data_offsets"])
        val start = offsets.getOrElse(0) { -1 }
        val end = offsets.getOrElse(1) { -1 }

        init {
            val width = WIDTHS[dtype]
            val whole = width != null && offsets.size == 2 && shape.size <= 8 && told.size == 3
            require(whole) { "$name is ${Json.write(told)}" }
            val bytes = shape.fold(WIDTHS.getValue(dtype).toLong()) { product, size ->
                require(product <= Int.MAX_VALUE && size <= Int.MAX_VALUE) { "$name has the shape $shape" }
                product * size
            }
            require(bytes == end - start) { "$name is $dtype $shape, and lies in bytes $start to $end" }
        }

        private fun counts(told: Any?): List<Long> {
            val list = told as? List<*>
            require(list != null && list.all { it is Long && it >= 0 }) { "$name has ${Json.write(told)} for counts" }
            return list.map { it as Long }
        }
    }
}
