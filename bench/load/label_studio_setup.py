"""Run by the interpreter of Label Studio's environment, in its package: an empty database, or accounts and tasks in it.

python label_studio_setup.py migrate
python label_studio_setup.py fill work.json sessions.json
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path[0] = os.getcwd()  # the package itself; this folder has a module of its name

import django  # noqa: E402

PAGE = """<View>
  <Text name="prompt" value="$prompt"/>
  <Header value="Which response is better?"/>
  <Pairwise name="pair" toName="a,b"/>
  <Text name="a" value="$a"/>
  <Text name="b" value="$b"/>
</View>"""


def fill(work: dict) -> list[str]:
    """One organisation with everybody in it, one project, all tasks, each to be answered once; the raters' sessions."""
    from django.contrib.auth.hashers import make_password
    from django.db import transaction
    from organizations.models import Organization
    from projects.models import Project
    from tasks.models import Task
    from users.models import User

    with transaction.atomic():
        admin = User.objects.create_user(email="admin@example.org", password=make_password(None))
        organization = Organization.create_organization(created_by=admin, title="Load")
        sessions = []
        for email in work["emails"]:
            user = User(email=email, username=email.partition("@")[0], password=make_password(None))
            user.active_organization = organization
            user.save()
            organization.add_user(user)
            sessions.append(session_of(user))
        project = Project.objects.create(
            title="Load",
            created_by=admin,
            organization=organization,
            label_config=PAGE,
            sampling=Project.UNIFORM,  # in order, every rater's request walks over what all the others hold
            maximum_annotations=1,
            is_published=True,
        )
        Task.objects.bulk_create([Task(data=data, project=project, overlap=1) for data in work["tasks"]], 500)
        project.update_tasks_counters_and_task_states(
            tasks_queryset=project.tasks.all(),
            maximum_annotations_changed=False,
            overlap_cohort_percentage_changed=False,
            tasks_number_changed=True,
        )
    return sessions


def session_of(user) -> str:
    """What its login page leaves in the browser's cookie; its slow check of the password is not what is measured."""
    from django.contrib import auth
    from django.contrib.sessions.backends.signed_cookies import SessionStore

    session = SessionStore()
    session["last_login"] = time.time()
    session[auth.SESSION_KEY] = str(user.pk)
    session[auth.BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    session[auth.HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.save()
    return session.session_key


def main() -> None:
    """What was asked for."""
    django.setup()
    if sys.argv[1] == "migrate":
        from django.core.management import call_command

        call_command("migrate", "--no-color", verbosity=0)
    else:
        sessions = fill(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
        Path(sys.argv[3]).write_text(json.dumps(sessions), encoding="utf-8")


if __name__ == "__main__":
    main()
