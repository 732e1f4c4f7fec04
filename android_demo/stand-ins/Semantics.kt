/** Stand-in for the declarations that the screen uses of androidx.compose.ui.semantics. */
package androidx.compose.ui.semantics

import androidx.compose.ui.Modifier

enum class LiveRegionMode { Polite }
interface SemanticsPropertyReceiver
var SemanticsPropertyReceiver.liveRegion: LiveRegionMode
    get() = TODO()
    set(_) = TODO()

fun Modifier.semantics(properties: SemanticsPropertyReceiver.() -> Unit): Modifier = TODO()
