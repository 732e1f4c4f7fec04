/** Stand-in for the declarations that the screen uses of androidx.compose.ui.res. */
package androidx.compose.ui.res

import androidx.compose.runtime.Composable

@Composable fun stringResource(id: Int): String = TODO()
