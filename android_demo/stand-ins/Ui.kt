/** Stand-in for the declarations that the screen uses of androidx.compose.ui. */
package androidx.compose.ui

interface Modifier {
    companion object : Modifier
}
