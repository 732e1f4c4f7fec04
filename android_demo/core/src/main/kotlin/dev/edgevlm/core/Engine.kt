/** The seam between this app and a library that computes: an engine opens a bundle as a model that remembers. */
package dev.edgevlm.core

/** Ends work from another thread, within what is being computed. */
class Stop {
    private val hooks = LinkedHashSet<() -> Unit>()

    @Volatile
    var asked = false
        private set

    fun now() = synchronized(hooks) {
        asked = true
        hooks.forEach { it() }
    }

    /** Throws StoppedException once the end was asked for. */
    fun check() {
        if (asked) throw StoppedException()
    }

    /** [end] is called where the end is asked for while [work] goes on, and never after. */
    fun <T> during(end: () -> Unit, work: () -> T): T {
        synchronized(hooks) {
            check()
            hooks += end
        }
        try {
            return work()
        } finally {
            synchronized(hooks) { hooks -= end }
        }
    }
}

/** What an engine is told. [context]: positions that the decoder may hold; 0: the model's. */
class Settings(val threads: Int, val context: Int = 0)

interface Engine {
    /** For people and results: `onnxruntime`, or with what computes beside the processor, `onnxruntime+xnnpack`. */
    val name: String

    /** Formats of parts that it opens. */
    val formats: Set<String>

    /** Bytes that the bundle will take while it runs, as [settings] say. */
    fun predicted(bundle: Bundle, settings: Settings): Long

    /** The files must have been checked. Throws EngineException. */
    fun open(bundle: Bundle, settings: Settings): Model
}

/** An opened bundle; one thread at a time. After any exception it holds what it held before. */
interface Model : AutoCloseable {
    val context: Int

    /** How many positions it holds. */
    val position: Int

    /** Pixels float32 `[1, 3, size, size]` into rows `[N, hidden]`. The encoder opens when it is needed. */
    fun see(pixels: FloatArray, stop: Stop): FloatArray

    /** Appends segments; the logits `[vocab]` of the last position. Throws ContextException, EngineException. */
    fun extend(segments: List<Segment>, stop: Stop): FloatArray

    /** Drops what stands from [position] on. */
    fun rewind(position: Int)

    /** Lets the vision encoder's memory go until an image comes. */
    fun freeVision()
}

/** Throws EngineException where no part of the bundle is for this engine, or the memory that is free will not do. */
fun Engine.require(bundle: Bundle, settings: Settings, freeBytes: Long) {
    bundle.manifest.parts.find { it.format !in formats }?.let {
        throw EngineException(
            "the bundle's ${it.covers.joinToString("+")} is ${it.format}, and $name opens ${formats.joinToString()}",
            "export it again: edge export CHECKPOINT --recipe balanced",
        )
    }
    val needed = predicted(bundle, settings)
    if (needed > freeBytes) {
        throw EngineException(
            "${bundle.manifest.name} needs some ${needed shr 20} MB, and ${freeBytes shr 20} MB are free",
            "close other apps, or a smaller model",
        )
    }
}
