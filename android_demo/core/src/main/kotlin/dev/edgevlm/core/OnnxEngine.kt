/** Engine for `onnx` parts: ONNX Runtime, by its Java API. */
package dev.edgevlm.core

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtLoggingLevel
import ai.onnxruntime.OrtProvider
import ai.onnxruntime.OrtSession
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer

/** What computes; all but the processor's own must prove themselves first (`Choice.kt`). */
enum class Provider(val suffix: String, val ort: OrtProvider) {
    CPU("", OrtProvider.CPU),
    XNNPACK("+xnnpack", OrtProvider.XNNPACK),
    NNAPI("+nnapi", OrtProvider.NNAPI),
}

class OnnxEngine(private val provider: Provider = Provider.CPU) : Engine {
    override val name = "onnxruntime${provider.suffix}"
    override val formats = setOf("onnx")

    override fun predicted(bundle: Bundle, settings: Settings): Long {
        val decoder = bundle.manifest.decoder
        val positions = (if (settings.context > 0) settings.context else decoder.context).toLong()
        val cache = 2L * decoder.layers * decoder.kvHeads * decoder.headDim * 4 * positions
        // Weights are put in another order for the processor, those of 4 bits beside the file's own.
        return bundle.manifest.parts.sumOf { part -> part.files.sumOf { it.bytes } } * 27 / 20 + cache
    }

    override fun open(bundle: Bundle, settings: Settings): Model {
        val environment = OrtEnvironment.getEnvironment()
        val options = OrtSession.SessionOptions()
        try {
            options.setIntraOpNumThreads(settings.threads)
            options.setInterOpNumThreads(1)
            options.setExecutionMode(OrtSession.SessionOptions.ExecutionMode.SEQUENTIAL)
            options.setOptimizationLevel(OrtSession.SessionOptions.OptLevel.ALL_OPT)
            options.setSessionLogLevel(OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL)
            // A pattern is planned and kept for every combination of shapes, and each token brings a new one.
            options.setMemoryPatternOptimization(false)
            when (provider) {
                Provider.CPU -> Unit
                Provider.XNNPACK -> options.addXnnpack(mapOf("intra_op_num_threads" to settings.threads.toString()))
                Provider.NNAPI -> options.addNnapi()
            }
            return OnnxModel(environment, options, bundle, settings)
        } catch (error: OrtException) {
            options.close()
            throw EngineException("$name does not start: ${error.message}", cause = error)
        } catch (error: EdgeException) {
            options.close()
            throw error
        }
    }

    companion object {
        /** Those that the library itself was built with. */
        fun available(): List<Provider> = OrtEnvironment.getAvailableProviders().let { found ->
            Provider.entries.filter { it.ort in found }
        }

        fun version(): String = OrtEnvironment.getEnvironment().version
    }
}

private class OnnxModel(
    private val environment: OrtEnvironment,
    private val options: OrtSession.SessionOptions,
    private val bundle: Bundle,
    settings: Settings,
) : Model {
    private val seeing = bundle.manifest.parts.filter { "decoder" !in it.covers }
    private var vision: List<OrtSession> = emptyList()
    private val session: OrtSession
    private val decoder: KvDecoder

    init {
        val part = bundle.manifest.part("decoder")
        val spec = bundle.manifest.decoder
        val table = EmbeddingTable.open(part.files.map(bundle::file), spec.vocab, spec.hidden)
        session = opened(part)
        try {
            decoder = KvDecoder(environment, session, table, spec, settings.context)
        } catch (error: EdgeException) {
            session.close()
            throw error
        }
    }

    override val context get() = decoder.context
    override val position get() = decoder.position

    override fun see(pixels: FloatArray, stop: Stop): FloatArray {
        if (seeing.isEmpty()) throw EngineException("the bundle has no vision part", "ask without a photo")
        if (vision.isEmpty()) vision = openedAll()
        val size = bundle.manifest.image.size.toLong()
        var values = OnnxTensor.createTensor(environment, direct(pixels), longArrayOf(1, 3, size, size))
        for (part in vision) {
            val result = values.use { running(stop) { own -> part.run(mapOf(part.inputNames.first() to it), own) } }
            values = result[0] as OnnxTensor
        }
        return values.use(::floats).also {
            val expected = bundle.manifest.prompt.imageTokens * bundle.manifest.decoder.hidden
            if (it.size != expected) throw EngineException("the vision part gave ${it.size} numbers, not $expected")
        }
    }

    override fun extend(segments: List<Segment>, stop: Stop) = decoder.extend(segments, stop)

    override fun rewind(position: Int) = decoder.rewind(position)

    override fun freeVision() {
        vision.forEach(OrtSession::close)
        vision = emptyList()
    }

    override fun close() {
        freeVision()
        decoder.close()
        session.close()
        options.close()
    }

    private fun openedAll(): List<OrtSession> {
        val found = ArrayList<OrtSession>()
        try {
            seeing.mapTo(found, ::opened)
        } catch (error: EdgeException) {
            found.forEach(OrtSession::close)
            throw error
        }
        return found
    }

    /** Throws EngineException on a file that the library refuses, or that is not the part of the manifest. */
    private fun opened(part: Part): OrtSession {
        val file: File = bundle.file(part.files[0])
        val session = try {
            environment.createSession(file.path, options)
        } catch (error: OrtException) {
            val why = "onnxruntime cannot open ${file.name}: ${error.message}"
            throw EngineException(why, BundleException.AGAIN, error)
        }
        for ((told, found) in listOf(part.inputs to session.inputNames, part.outputs to session.outputNames)) {
            if (told.map { it.name }.toSet() != found) {
                session.close()
                throw EngineException("${file.name} is not the part that the manifest describes: it has $found")
            }
        }
        return session
    }
}

/** One run of the library, which ends within a node when the end is asked for. */
internal fun running(stop: Stop, run: (OrtSession.RunOptions) -> OrtSession.Result): OrtSession.Result =
    OrtSession.RunOptions().use { own ->
        try {
            stop.during({ own.setTerminate(true) }) { run(own) }
        } catch (error: OrtException) {
            if (stop.asked) throw StoppedException()
            throw EngineException("onnxruntime failed: ${error.message}", cause = error)
        }
    }

internal fun floats(tensor: OnnxTensor): FloatArray =
    tensor.floatBuffer.let { buffer -> FloatArray(buffer.remaining()).also { buffer.get(it) } }

/** Memory that the library reads and writes where it lies. */
internal fun directBytes(count: Int): ByteBuffer = ByteBuffer.allocateDirect(count).order(ByteOrder.nativeOrder())

internal fun direct(values: FloatArray): FloatBuffer =
    directBytes(4 * values.size).asFloatBuffer().apply { put(values).rewind() }
