/** The process: one assistant, which outlives the screen. */
package dev.edgevlm.demo

import android.app.Application
import android.os.Handler
import android.os.Looper
import android.system.Os
import kotlinx.coroutines.CoroutineDispatcher
import kotlin.coroutines.CoroutineContext

class DemoApp : Application() {
    val assistant by lazy { Assistant(this) }

    override fun onCreate() {
        super.onCreate()
        // Before its library is loaded: builds from 1.29 on would send telemetry.
        Os.setenv("ORT_DISABLE_TELEMETRY", "1", true)
    }

    override fun onTrimMemory(level: Int) {
        super.onTrimMemory(level)
        assistant.trim()
    }
}

/** The thread of the screen. */
object Main : CoroutineDispatcher() {
    private val handler = Handler(Looper.getMainLooper())

    override fun dispatch(context: CoroutineContext, block: Runnable) {
        handler.post(block)
    }
}
