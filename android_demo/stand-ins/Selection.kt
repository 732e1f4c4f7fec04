/** Stand-in for the declarations that the screen uses of androidx.compose.foundation.text.selection. */
package androidx.compose.foundation.text.selection

import androidx.compose.runtime.Composable

@Composable fun SelectionContainer(content: @Composable () -> Unit): Unit = TODO()
