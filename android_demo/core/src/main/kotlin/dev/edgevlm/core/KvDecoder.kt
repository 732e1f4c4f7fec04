/** Decoder for ONNX graphs with `past_key_values` inputs, which write new positions into the cache that they read. */
package dev.edgevlm.core

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtSession
import ai.onnxruntime.TensorInfo
import java.nio.ByteBuffer
import java.nio.FloatBuffer
import java.nio.LongBuffer

private val WIDTHS = mapOf(OnnxJavaType.FLOAT to 4, OnnxJavaType.FLOAT16 to 2)

/** [asked]: positions that it may hold; 0: the model's. */
internal class KvDecoder(
    private val environment: OrtEnvironment,
    private val session: OrtSession,
    private val table: EmbeddingTable,
    private val spec: DecoderSpec,
    asked: Int,
) : AutoCloseable {
    val context: Int
    var position = 0
        private set
    private val past = LinkedHashMap<String, OnnxTensor>()
    private val present = LinkedHashMap<String, OnnxTensor>()
    private val wantsPositions = "position_ids" in session.inputNames
    private val row: FloatBuffer = directBytes(4 * spec.hidden).asFloatBuffer() // one token at a time is common
    private val ones: LongBuffer

    init {
        requireNames()
        val slots = slots()
        val length = slots.values.map { it.shape[2] }.distinct().singleOrNull()
            ?: throw EngineException("the decoder's caches differ in length from layer to layer")
        val wanted = if (asked > 0) minOf(asked, spec.context) else spec.context
        context = if (length > 0) minOf(wanted.toLong(), length).toInt() else wanted
        ones = directBytes(8 * context).asLongBuffer()
        for (i in 0 until context) ones.put(i, 1)
        val held = if (length > 0) length else context.toLong()
        val shape = longArrayOf(1, spec.kvHeads.toLong(), held, spec.headDim.toLong())
        val numbers = shape.reduce(Long::times)
        try {
            for ((name, info) in slots) {
                val bytes = numbers * WIDTHS.getValue(info.type)
                if (bytes > Int.MAX_VALUE) throw EngineException("a KV cache of $context positions is too large")
                val tensor = OnnxTensor.createTensor(environment, directBytes(bytes.toInt()), shape, info.type)
                past[name] = tensor
                present[name.replace("past_key_values.", "present.")] = tensor
            }
        } catch (error: OutOfMemoryError) {
            close()
            throw EngineException("no memory for a KV cache of $context positions", "a smaller context", error)
        }
    }

    fun extend(segments: List<Segment>, stop: Stop): FloatArray {
        val count = segments.sumOf { it.count }
        if (count == 0) throw EngineException("a decoder was extended by nothing")
        val total = position + count
        if (total > context) throw ContextException(total, context)
        val rows = if (count == 1) row.apply { clear() } else directBytes(4 * count * spec.hidden).asFloatBuffer()
        for (segment in segments) when (segment) {
            is Segment.Tokens -> table.gather(segment.ids, rows)
            is Segment.Rows -> {
                if (segment.values.size != segment.count * spec.hidden) {
                    throw EngineException("${segment.values.size} numbers for ${segment.count} rows of ${spec.hidden}")
                }
                rows.put(segment.values)
            }
        }
        rows.flip()
        return run(rows, count, total, stop).also { position = total }
    }

    fun rewind(to: Int) {
        if (to !in 0..position) throw EngineException("cannot rewind to $to from $position")
        position = to // what lies behind it is masked, and written over
    }

    override fun close() = past.values.forEach(OnnxTensor::close)

    private fun run(rows: FloatBuffer, count: Int, total: Int, stop: Stop): FloatArray {
        val given = ArrayList<OnnxTensor>()
        fun keep(tensor: OnnxTensor) = tensor.also { given += it }
        try {
            val feeds = HashMap<String, OnnxTensor>(past)
            val shape = longArrayOf(1, count.toLong(), spec.hidden.toLong())
            feeds["inputs_embeds"] = keep(OnnxTensor.createTensor(environment, rows, shape))
            val mask = ones.duplicate().apply { limit(total) }
            feeds["attention_mask"] = keep(OnnxTensor.createTensor(environment, mask, longArrayOf(1, total.toLong())))
            if (wantsPositions) feeds["position_ids"] = keep(positions(count))
            return running(stop) { own -> session.run(feeds, setOf("logits"), present, own) }.use { result ->
                // Of all positions, or of the last one only.
                floats(result["logits"].get() as OnnxTensor).let { it.copyOfRange(it.size - spec.vocab, it.size) }
            }
        } finally {
            given.forEach(OnnxTensor::close)
        }
    }

    private fun positions(count: Int): OnnxTensor {
        val numbers = directBytes(8 * count).asLongBuffer()
        for (i in 0 until count) numbers.put(i, (position + i).toLong())
        return OnnxTensor.createTensor(environment, numbers, longArrayOf(1, count.toLong()))
    }

    private fun requireNames() {
        val kinds = (0 until spec.layers).flatMap { listOf("$it.key", "$it.value") }
        val inputs = kinds.map { "past_key_values.$it" } + listOf("inputs_embeds", "attention_mask")
        val outputs = kinds.map { "present.$it" } + "logits"
        val odd = (session.inputNames - "position_ids" differs inputs) + (session.outputNames differs outputs)
        if (odd.isNotEmpty()) {
            val names = odd.take(6).joinToString()
            throw EngineException("not a decoder of ${spec.layers} layers: $names", BundleException.AGAIN)
        }
    }

    private infix fun Set<String>.differs(expected: List<String>) = (this - expected.toSet()) + (expected - this)

    /** The caches by their names. Past and present must name one length: the graph then writes into what it reads. */
    private fun slots(): Map<String, TensorInfo> {
        val inputs = session.inputInfo
        val outputs = session.outputInfo
        return inputs.keys.filter { it.startsWith("past_key_values.") }.associateWith { name ->
            val own = inputs.getValue(name).info as TensorInfo
            val written = outputs.getValue(name.replace("past_key_values.", "present.")).info as TensorInfo
            val shape = own.shape
            val (heads, width) = spec.kvHeads.toLong() to spec.headDim.toLong()
            if (own.type !in WIDTHS || shape.size != 4 || shape[1] != heads || shape[3] != width) {
                throw EngineException("$name is ${own.type} ${shape.toList()}, not [1, $heads, length, $width]")
            }
            if (written.type != own.type || !written.shape.contentEquals(shape) ||
                written.dimensionNames[2] != own.dimensionNames[2]
            ) {
                throw EngineException("the decoder gives longer copies of its caches", "export the bundle again")
            }
            own
        }
    }
}
