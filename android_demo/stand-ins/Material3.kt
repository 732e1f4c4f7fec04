/** Stand-in for the declarations that the screen uses of androidx.compose.material3. */
package androidx.compose.material3

import androidx.compose.foundation.layout.RowScope
import androidx.compose.foundation.text.KeyboardActions
import androidx.compose.foundation.text.KeyboardOptions
import androidx.compose.runtime.Composable
import androidx.compose.ui.Modifier
import androidx.compose.ui.text.TextStyle

class ColorScheme internal constructor()
fun lightColorScheme(): ColorScheme = TODO()
fun darkColorScheme(): ColorScheme = TODO()

abstract class Typography internal constructor() {
    abstract val titleMedium: TextStyle
    abstract val bodyLarge: TextStyle
    abstract val bodyMedium: TextStyle
    abstract val bodySmall: TextStyle
}

object MaterialTheme {
    val typography: Typography @Composable get() = TODO()
}

@Composable fun MaterialTheme(colorScheme: ColorScheme, content: @Composable () -> Unit): Unit = TODO()
@Composable fun Surface(modifier: Modifier, content: @Composable () -> Unit): Unit = TODO()
@Composable fun Button(onClick: () -> Unit, enabled: Boolean, content: @Composable RowScope.() -> Unit): Unit = TODO()
@Composable fun Text(
    text: String,
    modifier: Modifier = Modifier,
    maxLines: Int = Int.MAX_VALUE,
    style: TextStyle? = null,
): Unit = TODO()
@Composable fun TextButton(
    onClick: () -> Unit,
    modifier: Modifier = Modifier,
    enabled: Boolean = true,
    content: @Composable RowScope.() -> Unit,
): Unit = TODO()
@Composable fun OutlinedTextField(
    value: String,
    onValueChange: (String) -> Unit,
    modifier: Modifier,
    placeholder: @Composable (() -> Unit)?,
    keyboardOptions: KeyboardOptions,
    keyboardActions: KeyboardActions,
    maxLines: Int,
): Unit = TODO()
@Composable fun AlertDialog(
    onDismissRequest: () -> Unit,
    confirmButton: @Composable () -> Unit,
    title: @Composable (() -> Unit)?,
    text: @Composable (() -> Unit)?,
): Unit = TODO()
