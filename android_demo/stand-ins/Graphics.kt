/** Stand-in for the declarations that the screen uses of androidx.compose.ui.graphics. */
package androidx.compose.ui.graphics

import android.graphics.Bitmap

interface ImageBitmap
fun Bitmap.asImageBitmap(): ImageBitmap = TODO()
