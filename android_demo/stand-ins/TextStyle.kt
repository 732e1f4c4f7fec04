/** Stand-in for the declarations that the screen uses of androidx.compose.ui.text. */
package androidx.compose.ui.text

class TextStyle internal constructor()
