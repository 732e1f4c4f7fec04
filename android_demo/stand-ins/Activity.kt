/** Stand-in for the declarations that the screen uses of androidx.activity. */
package androidx.activity

import android.app.Activity
import android.content.Intent
import android.os.Bundle

open class ComponentActivity : Activity() {
    override fun onCreate(savedInstanceState: Bundle?): Unit = TODO()
    override fun onNewIntent(intent: Intent): Unit = TODO()
}

fun ComponentActivity.enableEdgeToEdge(): Unit = TODO()
