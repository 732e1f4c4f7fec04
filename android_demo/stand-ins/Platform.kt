/** Stand-in for the declarations that the screen uses of androidx.compose.ui.platform. */
package androidx.compose.ui.platform

import android.content.Context
import androidx.compose.runtime.CompositionLocal

val LocalContext: CompositionLocal<Context> get() = TODO()
