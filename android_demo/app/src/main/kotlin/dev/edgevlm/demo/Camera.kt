/** The camera behind the phone: its frames go to whoever watches. */
package dev.edgevlm.demo

import android.content.Context
import android.graphics.ImageFormat
import android.hardware.camera2.CameraAccessException
import android.hardware.camera2.CameraCaptureSession
import android.hardware.camera2.CameraCharacteristics
import android.hardware.camera2.CameraDevice
import android.hardware.camera2.CameraManager
import android.hardware.camera2.CaptureRequest
import android.media.Image
import android.media.ImageReader
import android.os.Handler
import android.os.HandlerThread
import android.util.Size
import android.view.Surface
import android.view.WindowManager
import dev.edgevlm.core.EdgeException
import dev.edgevlm.core.Frame
import dev.edgevlm.core.Frames
import dev.edgevlm.core.Plane
import dev.edgevlm.core.UsageException
import dev.edgevlm.core.refusedCamera
import java.nio.ByteBuffer

private const val EDGE = 480 // pixels: more than a vision encoder sees
private val TURNS = listOf(Surface.ROTATION_0, Surface.ROTATION_90, Surface.ROTATION_180, Surface.ROTATION_270)

/** [failed] is told, once, why it gives no more frames. Called on the main thread. */
class Camera(private val context: Context, private val frames: Frames, private val failed: (EdgeException) -> Unit) {
    private val manager = context.getSystemService(Context.CAMERA_SERVICE) as CameraManager
    private val thread = HandlerThread("camera")
    private var reader: ImageReader? = null // on the camera's own thread, as the two below
    private var device: CameraDevice? = null
    private var opening = false
    private var closed = false

    /** The permission must have been given. */
    fun start() {
        thread.start()
        val handler = Handler(thread.looper)
        handler.post { guarded { open(handler) } }
    }

    fun stop() {
        Handler(thread.looper).post(::close)
    }

    private fun open(handler: Handler) {
        val id = manager.cameraIdList.firstOrNull { fact(it, CameraCharacteristics.LENS_FACING) == BACK }
            ?: manager.cameraIdList.firstOrNull() ?: throw UsageException("this phone has no camera")
        val sizes = fact(id, CameraCharacteristics.SCALER_STREAM_CONFIGURATION_MAP)
            ?.getOutputSizes(ImageFormat.YUV_420_888).orEmpty().sortedBy { it.width.toLong() * it.height }
        val size: Size = sizes.firstOrNull { minOf(it.width, it.height) >= EDGE } ?: sizes.lastOrNull()
            ?: throw UsageException("this phone's camera gives no frames")
        val mounted = fact(id, CameraCharacteristics.SENSOR_ORIENTATION) ?: 0
        val made = ImageReader.newInstance(size.width, size.height, ImageFormat.YUV_420_888, 2)
        reader = made
        val take = { guarded { made.acquireLatestImage()?.use { put(it, mounted) } } }
        made.setOnImageAvailableListener({ take() }, handler)
        opening = true
        manager.openCamera(id, Opened(made.surface, handler), handler)
    }

    private fun <T> fact(id: String, key: CameraCharacteristics.Key<T>): T? =
        manager.getCameraCharacteristics(id).get(key)

    /** Upright as the phone is held now. */
    private fun put(image: Image, mounted: Int) {
        val window = context.getSystemService(Context.WINDOW_SERVICE) as WindowManager
        val held = TURNS.indexOf(window.defaultDisplay.rotation)
        val (y, u, v) = image.planes.map { Plane(bytes(it.buffer), it.rowStride, it.pixelStride) }
        frames.put(Frame(image.width, image.height, y, u, v, (mounted / 90 - held).mod(4)))
    }

    private fun bytes(buffer: ByteBuffer) = ByteArray(buffer.remaining()).also { buffer.get(it) }

    private inner class Opened(private val surface: Surface, private val handler: Handler) :
        CameraDevice.StateCallback() {
        override fun onOpened(camera: CameraDevice) = guarded {
            given(camera)
            if (closed) return@guarded close()
            val request = camera.createCaptureRequest(CameraDevice.TEMPLATE_PREVIEW).apply { addTarget(surface) }
            camera.createCaptureSession(listOf(surface), Configured(request.build(), handler), handler)
        }

        override fun onDisconnected(camera: CameraDevice) {
            given(camera)
            fail(UsageException("another app has taken the camera"))
        }

        override fun onError(camera: CameraDevice, error: Int) {
            given(camera)
            fail(UsageException("the camera fails with $error"))
        }

        private fun given(camera: CameraDevice) {
            device = camera
            opening = false
        }
    }

    private inner class Configured(private val request: CaptureRequest, private val handler: Handler) :
        CameraCaptureSession.StateCallback() {
        override fun onConfigured(session: CameraCaptureSession) = guarded {
            if (!closed) session.setRepeatingRequest(request, null, handler)
        }

        override fun onConfigureFailed(session: CameraCaptureSession) =
            fail(UsageException("this phone's camera gives no frames"))
    }

    private fun guarded(work: () -> Unit) = try {
        work()
    } catch (error: EdgeException) {
        fail(error)
    } catch (_: SecurityException) {
        fail(refusedCamera(forGood = false))
    } catch (error: CameraAccessException) {
        fail(UsageException("the camera cannot be used: ${error.message}"))
    } catch (error: IllegalStateException) { // it was closed meanwhile
        fail(UsageException("the camera has stopped: ${error.message}"))
    }

    private fun fail(error: EdgeException) {
        if (!closed) failed(error)
        close()
    }

    private fun close() {
        closed = true
        if (!opening) thread.quitSafely() // else what is still to be given would stay open
        device?.close()
        device = null
        reader?.close()
        reader = null
    }

    private companion object {
        const val BACK = CameraCharacteristics.LENS_FACING_BACK
    }
}
