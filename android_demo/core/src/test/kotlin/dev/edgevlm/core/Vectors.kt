/** What several tests share: golden vectors, the demo bundle, and copies of it to spoil. */
package dev.edgevlm.core

import org.junit.Assert.assertTrue
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.file.Files

/** Folders that the command which starts the tests names. */
fun place(name: String) = File(System.getProperty("edge.$name") ?: error("-Dedge.$name is not set"))

@Suppress("UNCHECKED_CAST")
fun vectors(file: File) = Json.parse(file.readText()) as Map<String, Any?>

@Suppress("UNCHECKED_CAST")
fun Any?.items() = this as List<Map<String, Any?>>

fun Any?.numbers() = (this as List<*>).map { (it as Long).toInt() }

fun Map<String, Any?>.number(name: String) = (this[name] as Long).toInt()

fun floats(file: File): FloatArray {
    val buffer = ByteBuffer.wrap(file.readBytes()).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
    return FloatArray(buffer.remaining()).also { buffer.get(it) }
}

fun tokenizer(name: String): Tokenizer {
    val plain = File(place("data"), "tokenizer.json")
    return Tokenizer.open(if (name == "byte_fallback") plain else File(place("golden"), "tokenizers/$name.json"))
}

fun temporary(): File = Files.createTempDirectory("edge").toFile().apply { deleteOnExit() }

/** A copy of the demo bundle to change. */
fun copied(): File = temporary().apply { place("bundle").copyRecursively(this, overwrite = true) }

inline fun <reified T : Throwable> thrown(block: () -> Unit): T {
    try {
        block()
    } catch (error: Throwable) {
        if (error is T) return error
        throw error
    }
    throw AssertionError("nothing was thrown, ${T::class.java.simpleName} was expected")
}

fun assertSays(error: Throwable, vararg words: String) =
    words.forEach { assertTrue("${error.message} says nothing of $it", it in "${error.message}") }

/** Answers by script: no library, no memory to speak of. */
class FakeEngine(
    override val name: String = "fake",
    private val size: Long = 0,
    private val make: (Bundle) -> Model,
) : Engine {
    override val formats = setOf("onnx")
    override fun predicted(bundle: Bundle, settings: Settings) = size
    override fun open(bundle: Bundle, settings: Settings) = make(bundle)
}

/** What the golden sample says, but for [error] added to every number. */
class GoldenModel(bundle: Bundle, private val error: Float) : Model {
    private val golden = Golden.load(bundle.file(bundle.manifest.golden))
    override val context = bundle.manifest.decoder.context
    override var position = 0
    private var steps = 0
    override fun see(pixels: FloatArray, stop: Stop) = golden.stored.imageEmbeds.map { it + error }.toFloatArray()
    override fun extend(segments: List<Segment>, stop: Stop): FloatArray {
        val first = position == 0
        position += segments.sumOf { it.count }
        steps = if (first) 0 else steps + 1
        if (first) return golden.stored.logits.map { it + error }.toFloatArray()
        return FloatArray(golden.stored.logits.size).also { it[golden.stored.tokens[minOf(steps, 15)]] = 1f }
    }
    override fun rewind(position: Int) { this.position = position }
    override fun freeVision() = Unit
    override fun close() = Unit
}
