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

/** The picture that Python was asked about. */
fun shown(entry: Map<String, Any?>): Picture {
    val rgb = File(place("here"), "${entry["picture"]}.rgb").readBytes()
    return Picture(entry.number("width"), entry.number("height"), rgb)
}

fun tokenizer(name: String): Tokenizer {
    val plain = File(place("data"), "tokenizer.json")
    return Tokenizer.open(if (name == "byte_fallback") plain else File(place("golden"), "tokenizers/$name.json"))
}

/** In a folder that the command which starts the tests removes. */
fun temporary(): File = Files.createTempDirectory("edge").toFile()

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

/** What the golden sample says, or [told] does, but for [error] added to every number. */
class GoldenModel(bundle: Bundle, private val error: Float, told: Outputs? = null) : Model {
    private val outputs = told ?: Golden.load(bundle.file(bundle.manifest.golden)).stored
    override val context = bundle.manifest.decoder.context
    override var position = 0
    private var steps = 0
    override fun see(pixels: FloatArray, stop: Stop) = outputs.imageEmbeds.map { it + error }.toFloatArray()
    override fun extend(segments: List<Segment>, stop: Stop): FloatArray {
        val first = position == 0
        position += segments.sumOf { it.count }
        steps = if (first) 0 else steps + 1
        if (first) return outputs.logits.map { it + error }.toFloatArray()
        return FloatArray(outputs.logits.size).also { it[outputs.tokens[minOf(steps, 15)]] = 1f }
    }
    override fun rewind(position: Int) { this.position = position }
    override fun freeVision() = Unit
    override fun close() = Unit
}
