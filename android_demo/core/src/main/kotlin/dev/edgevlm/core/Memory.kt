/** Memory of this process, as Linux and Android tell it. */
package dev.edgevlm.core

import java.io.File
import java.io.IOException

object Memory {
    /** Bytes that the process takes now; null where the system does not tell. */
    fun now(): Long? = field("VmRSS:")

    /** At most, so far. */
    fun peak(): Long? = field("VmHWM:")

    private fun field(name: String): Long? = try {
        File("/proc/self/status").useLines { lines ->
            lines.find { it.startsWith(name) }?.filter(Char::isDigit)?.toLongOrNull()?.times(1024)
        }
    } catch (_: IOException) {
        null
    }
}
