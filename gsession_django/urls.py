"""The pages "Your sessions": ``path("sessions/", include("gsession_django.urls"))``."""

from django.urls import path

from gsession_django.users import views

app_name = "gsession_django"
urlpatterns = [
    path("", views.sessions, name="sessions"),
    path("end/<str:handle>/", views.end, name="end"),
    path("end-others/", views.end_others, name="end-others"),
]
