/** Stand-in for the declarations that the screen uses of androidx.compose.foundation.layout. */
package androidx.compose.foundation.layout

import androidx.compose.runtime.Composable
import androidx.compose.ui.Modifier
import androidx.compose.ui.unit.Dp

@DslMarker annotation class LayoutScopeMarker

@LayoutScopeMarker interface ColumnScope {
    fun Modifier.weight(weight: Float, fill: Boolean = true): Modifier
}

@LayoutScopeMarker interface RowScope {
    fun Modifier.weight(weight: Float, fill: Boolean = true): Modifier
}

@Composable fun Column(modifier: Modifier = Modifier, content: @Composable ColumnScope.() -> Unit): Unit = TODO()
@Composable fun Row(modifier: Modifier = Modifier, content: @Composable RowScope.() -> Unit): Unit = TODO()
@Composable fun Spacer(modifier: Modifier): Unit = TODO()
fun Modifier.fillMaxSize(fraction: Float = 1f): Modifier = TODO()
fun Modifier.fillMaxWidth(fraction: Float = 1f): Modifier = TODO()
fun Modifier.padding(all: Dp): Modifier = TODO()
fun Modifier.safeDrawingPadding(): Modifier = TODO()
