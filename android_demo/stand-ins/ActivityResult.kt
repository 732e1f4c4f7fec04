/** Stand-in for the declarations that the screen uses of androidx.activity.result. */
package androidx.activity.result

import android.content.Intent

class ActivityResult(val resultCode: Int, val data: Intent?)

abstract class ActivityResultLauncher<I> {
    open fun launch(input: I): Unit = TODO()
}
