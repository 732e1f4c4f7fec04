/** Stand-in for the declarations that the screen uses of androidx.compose.ui.unit. */
package androidx.compose.ui.unit

class Dp(val value: Float)
val Int.dp: Dp get() = TODO()
