import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
}

android {
    namespace = "dev.edgevlm.demo"
    compileSdk = 36

    defaultConfig {
        applicationId = "dev.edgevlm.demo"
        minSdk = 26
        targetSdk = 36
        versionCode = 1
        versionName = "0.2.0"
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }

    // A newer ONNX Runtime's manifest must not make an app of this one that reports.
    sourceSets {
        for (type in listOf("debug", "release")) getByName(type).manifest.srcFile("src/gradle/AndroidManifest.xml")
    }

    buildTypes {
        release {
            isMinifyEnabled = true
            proguardFiles(getDefaultProguardFile("proguard-android-optimize.txt"), "proguard-rules.pro")
        }
    }

    packaging { jniLibs { useLegacyPackaging = false } } // mapped from the APK, at pages of 16 KB

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }

    // A bundle of your own: edge export CHECKPOINT -o android_demo/app/src/main/assets/demo
    androidResources { noCompress += listOf("data", "npy") }
}

kotlin {
    compilerOptions { jvmTarget.set(JvmTarget.JVM_1_8) }
}

dependencies {
    implementation(project(":core"))
    implementation(libs.onnxruntime.android)
}
