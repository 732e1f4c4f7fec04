/** What this phone tells of itself. */
package dev.edgevlm.demo

import android.app.ActivityManager
import android.content.Context
import android.content.Intent
import android.content.IntentFilter
import android.os.BatteryManager
import android.os.Build
import java.io.File
import java.io.IOException

class Device(private val context: Context) {
    val name = "${Build.MANUFACTURER} ${Build.MODEL}, Android ${Build.VERSION.RELEASE}"

    /** Bytes that the system can give before it kills other apps. */
    val freeBytes: Long
        get() = ActivityManager.MemoryInfo().also {
            (context.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager).getMemoryInfo(it)
        }.availMem

    /** Of the battery, in °C; null where the system does not tell. */
    val temperature: Double?
        get() = context.registerReceiver(null, IntentFilter(Intent.ACTION_BATTERY_CHANGED))
            ?.getIntExtra(BatteryManager.EXTRA_TEMPERATURE, 0)?.takeIf { it != 0 }?.div(10.0)

    /** As many as there are fast cores: a slow one would have all the others wait at each step. */
    val threads: Int by lazy {
        val clocks = (0 until Runtime.getRuntime().availableProcessors()).mapNotNull(::clock)
        val most = clocks.maxOrNull() ?: 0
        val fast = clocks.count { it * 10 >= most * 7 }
        (if (fast > 0) fast else Runtime.getRuntime().availableProcessors()).coerceIn(1, 4)
    }

    private fun clock(core: Int): Long? = try {
        File("/sys/devices/system/cpu/cpu$core/cpufreq/cpuinfo_max_freq").readText().trim().toLongOrNull()
    } catch (_: IOException) {
        null
    }
}
