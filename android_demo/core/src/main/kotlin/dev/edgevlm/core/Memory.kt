/** Memory of this process, as Linux and Android tell it. */
package dev.edgevlm.core

import java.io.File
import java.io.IOException

object Memory {
    /** Bytes that the process takes now; null where the system does not tell. */
    fun now(): Long? = field("/proc/self/status", "VmRSS:")

    /** At most, so far. */
    fun peak(): Long? = field("/proc/self/status", "VmHWM:")

    /** Bytes that the system can give without swapping. */
    fun free(): Long? = field("/proc/meminfo", "MemAvailable:")

    private fun field(file: String, name: String): Long? = try {
        File(file).useLines { lines ->
            lines.find { it.startsWith(name) }?.filter(Char::isDigit)?.toLongOrNull()?.times(1024)
        }
    } catch (_: IOException) {
        null
    }
}
