/** The table of token embeddings (`embed_tokens.npy`), mapped from disk: a prompt touches few rows. */
package dev.edgevlm.core

import java.io.File
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import java.nio.channels.FileChannel
import java.nio.file.StandardOpenOption

private const val TABLE = "embed_tokens.npy"
private const val SCALES = "embed_scales.npy"
private const val LONGEST_HEADER = 65_535 // bytes: what version 1 of .npy can say

class EmbeddingTable private constructor(private val table: Npy, private val scales: Npy?, private val hidden: Int) {
    private val blocks = scales?.shape?.get(1) ?: 1

    /** Appends the embeddings of [ids] to [out]. Throws EngineException on an id outside the vocabulary. */
    fun gather(ids: IntArray, out: FloatBuffer) {
        for (id in ids) {
            if (id < 0 || id >= table.shape[0]) {
                throw EngineException("the token id $id is outside the vocabulary of ${table.shape[0]}")
            }
            val start = id * hidden
            for (h in start until start + hidden) out.put(number(id, h, h - start))
        }
    }

    private fun number(id: Int, index: Int, column: Int): Float = when (table.dtype) {
        "<f4" -> table.data.getFloat(4 * index)
        "<f2" -> half(table.data.getShort(2 * index))
        else -> table.data.get(index) * scales!!.data.getFloat(4 * (id * blocks + column / (hidden / blocks)))
    }

    companion object {
        /** Of the files of the decoder's part. Throws BundleException. */
        fun open(files: List<File>, vocab: Int, hidden: Int): EmbeddingTable {
            fun named(name: String) =
                Npy.map(files.find { it.name == name } ?: throw BundleException("the decoder's part has no $name"))
            val table = named(TABLE)
            if (table.shape != listOf(vocab, hidden) || table.dtype !in listOf("<f4", "<f2", "|i1")) {
                throw BundleException("$TABLE is ${table.dtype} ${table.shape}, not [$vocab, $hidden]")
            }
            val scales = if (table.dtype == "|i1") named(SCALES) else null
            if (scales != null && (scales.dtype != "<f4" || scales.shape.size != 2 || scales.shape[0] != vocab ||
                    scales.shape[1] < 1 || hidden % scales.shape[1] != 0)
            ) {
                throw BundleException("$SCALES is ${scales.dtype} ${scales.shape}, for a table of [$vocab, $hidden]")
            }
            return EmbeddingTable(table, scales, hidden)
        }

        /** IEEE 754's 16 bits; exact. */
        internal fun half(bits: Short): Float {
            val exponent = bits.toInt() shr 10 and 31
            val fraction = bits.toInt() and 1023
            val size = when (exponent) {
                0 -> fraction / 16777216f // 2⁻²⁴ each
                31 -> if (fraction == 0) Float.POSITIVE_INFINITY else Float.NaN
                else -> Float.fromBits((exponent + 112 shl 23) or (fraction shl 13))
            }
            return if (bits < 0) -size else size
        }
    }
}

/** The bytes of a file, which take no heap. [hint]: what mends one that is too large for Java's buffers. */
internal fun mapped(file: File, hint: String): ByteBuffer =
    FileChannel.open(file.toPath(), StandardOpenOption.READ).use { channel ->
        if (channel.size() > Int.MAX_VALUE) throw BundleException("${file.name} has ${channel.size()} bytes", hint)
        channel.map(FileChannel.MapMode.READ_ONLY, 0, channel.size())
    }

/** An array in NumPy's `.npy` format, in C order. */
internal class Npy private constructor(val dtype: String, val shape: List<Int>, val data: ByteBuffer) {
    companion object {
        private val WIDTHS = mapOf("|i1" to 1, "|u1" to 1, "<f2" to 2, "<f4" to 4, "<i4" to 4)

        fun map(file: File): Npy = try {
            read(file.name, mapped(file, "an embedding table of 8 bits"))
        } catch (error: IOException) {
            throw BundleException("${file.name} cannot be read: ${error.message}", cause = error)
        }

        /** Throws BundleException on what is no such array, or holds more or less than its shape says. */
        fun read(name: String, all: ByteBuffer): Npy {
            all.order(ByteOrder.LITTLE_ENDIAN)
            fun damaged(why: String): Nothing = throw BundleException("$name is damaged: $why")
            if (all.remaining() < 12) damaged("it ends early")
            val magic = ByteArray(6).also { all.get(it) }
            if (!magic.contentEquals("\u0093NUMPY".toByteArray(Charsets.ISO_8859_1))) damaged("it is no .npy file")
            val version = all.getShort().toInt() and 255
            val length = if (version == 1) all.getShort().toInt() and 0xFFFF else all.getInt()
            if (length !in 0..minOf(all.remaining(), LONGEST_HEADER)) damaged("a header of $length bytes")
            val header = String(ByteArray(length).also { all.get(it) }, Charsets.ISO_8859_1)
            val dtype = Regex("'descr': '([^']+)'").find(header)?.groupValues?.get(1)
            val sizes = Regex("'shape': \\(([0-9, ]*)\\)").find(header)?.groupValues?.get(1)
            val width = WIDTHS[dtype]
            if (width == null || sizes == null || "'fortran_order': False" !in header) {
                damaged("its header is ${header.take(200)}")
            }
            val shape = sizes.split(',').map { it.trim() }.filter { it.isNotEmpty() }
                .map { it.toIntOrNull() ?: damaged("its shape is ($sizes)") }
            val bytes = shape.fold(width.toLong()) { product, size ->
                if (product > Int.MAX_VALUE) damaged("its shape is ($sizes)") else product * size
            }
            if (bytes != all.remaining().toLong()) damaged("$dtype $shape in ${all.remaining()} bytes")
            return Npy(dtype!!, shape, all.slice().order(ByteOrder.LITTLE_ENDIAN))
        }
    }
}
