/** Stand-in for the declarations that the screen uses of androidx.compose.foundation. */
package androidx.compose.foundation

import androidx.compose.runtime.Composable
import androidx.compose.ui.Modifier
import androidx.compose.ui.graphics.ImageBitmap

class ScrollState(initial: Int) {
    val maxValue: Int = initial
    suspend fun scrollTo(value: Int): Float = TODO()
}

@Composable fun rememberScrollState(initial: Int = 0): ScrollState = TODO()
@Composable fun isSystemInDarkTheme(): Boolean = TODO()
@Composable fun Image(bitmap: ImageBitmap, contentDescription: String?, modifier: Modifier): Unit = TODO()
fun Modifier.verticalScroll(state: ScrollState): Modifier = TODO()
fun Modifier.clickable(enabled: Boolean, onClick: () -> Unit): Modifier = TODO()
