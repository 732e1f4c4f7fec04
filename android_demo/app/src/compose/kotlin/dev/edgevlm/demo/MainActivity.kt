/** The screen in Compose: what of it only an Activity can be asked or told. */
package dev.edgevlm.demo

import android.Manifest
import android.content.Intent
import android.os.Bundle
import androidx.activity.ComponentActivity
import androidx.activity.compose.setContent
import androidx.activity.enableEdgeToEdge
import androidx.compose.foundation.isSystemInDarkTheme
import androidx.compose.foundation.layout.fillMaxSize
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.Surface
import androidx.compose.material3.darkColorScheme
import androidx.compose.material3.lightColorScheme
import androidx.compose.ui.Modifier

class MainActivity : ComponentActivity() {
    private val assistant get() = (application as DemoApp).assistant

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        enableEdgeToEdge()
        setContent {
            MaterialTheme(if (isSystemInDarkTheme()) darkColorScheme() else lightColorScheme()) {
                Surface(Modifier.fillMaxSize()) {
                    AssistantScreen(assistant) {
                        assistant.refused(forGood = !shouldShowRequestPermissionRationale(Manifest.permission.CAMERA))
                    }
                }
            }
        }
        if (savedInstanceState == null) assistant.told(intent)
    }

    override fun onNewIntent(intent: Intent) {
        super.onNewIntent(intent)
        assistant.told(intent)
    }

    override fun onStop() {
        if (!isChangingConfigurations) assistant.leave() // a live camera whose screen only turns goes on
        super.onStop()
    }
}
