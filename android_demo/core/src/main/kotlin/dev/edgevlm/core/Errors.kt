/** What goes wrong, as sentences that a screen can show. */
package dev.edgevlm.core

/** What failed, with the value, and why; [hint] is what mends it. */
sealed class EdgeException(message: String, val hint: String?, cause: Throwable?) : Exception(message, cause) {
    /** For the screen. */
    val sentence: String get() = if (hint == null) "$message." else "$message. Try: $hint."
}

/** A bundle that is missing, damaged, newer than this reader, or unsafe. */
class BundleException(message: String, hint: String? = AGAIN, cause: Throwable? = null) :
    EdgeException(message, hint, cause) {
    companion object {
        const val AGAIN = "copy or export the bundle again"
    }
}

/** A picture that cannot be read. */
class ImageException(message: String, hint: String? = null, cause: Throwable? = null) :
    EdgeException(message, hint, cause)

/** A call that cannot be carried out as given. */
class UsageException(message: String, hint: String? = null) : EdgeException(message, hint, null)

/** An engine that refuses a part, or fails while it runs. */
class EngineException(message: String, hint: String? = null, cause: Throwable? = null) :
    EdgeException(message, hint, cause)

/** More positions than the context holds. */
class ContextException(needed: Int, context: Int) :
    EdgeException("the prompt needs $needed positions, and the context holds $context", "ask something shorter", null)

/** Someone asked for the end: no failure. */
class StoppedException : EdgeException("stopped", null, null)
